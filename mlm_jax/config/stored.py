"""Configurations as runs record them, and what differs between two."""

import copy
import json

import ml_collections

from mlm_jax.config.access import get, leaves, values
from mlm_jax.config.keys import default_config
from mlm_jax.config.optimizer_defaults import weight_decay
from mlm_jax.files.errors import ConfigError

SCALARS = (bool, int, float, str, type(None))  # what a key can hold


def decided(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy in which a value stands wherever a key leaves the choice to another one, as a run is to record it."""
    config = copy.deepcopy(config)
    if 'optimizer' in config:
        config.optimizer.weight_decay = weight_decay(config.optimizer)
    return config


def to_json(config: ml_collections.ConfigDict) -> str:
    """The configuration as indented JSON, keys sorted, as `config.json` in a workdir holds it."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> ml_collections.ConfigDict:
    """The configuration that `to_json` wrote; keys that came later take their defaults.

    Raises:
      ConfigError: for text that is no such configuration, or one with keys that there are not.
    """
    config = default_config()
    try:
        stored = values(ml_collections.ConfigDict(json.loads(text)))
        if wrong := [key for key, value in stored.items() if not isinstance(value, SCALARS)]:
            raise ValueError(f'{wrong[0]} is {type(stored[wrong[0]]).__name__}, no single value')
    except (TypeError, ValueError, AttributeError, RecursionError) as error:  # no JSON, or no object with plain names
        raise ConfigError(f'the stored configuration is damaged: {error}') from None
    for key, _ in list(leaves(config)):
        if key in stored:
            parent, _, name = key.rpartition('.')
            node = get(config, parent) if parent else config
            with node.ignore_type():
                node[name] = stored.pop(key)
    if stored:
        raise ConfigError(f'the stored configuration holds unknown keys: {", ".join(sorted(stored))}')
    return config


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> dict[str, tuple]:
    """Dotted key → (old value, new value) of the keys in which two configurations differ, as they are `decided`."""
    a, b = (values(decided(config)) for config in (old, new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}
