"""Configurations as runs record them, and what differs between two."""

import json

import ml_collections

from mlm_jax.config.access import get, leaves, values
from mlm_jax.config.keys import default_config, kinds
from mlm_jax.config.resolve import decided
from mlm_jax.files.errors import ConfigError

SCALARS = (bool, int, float, str, type(None))  # what a key can hold


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
            value, kind = stored.pop(key), kinds()[key]
            if not kind.takes(value):
                raise ConfigError(f'the stored configuration is damaged: {key} is {value!r}')
            with node.ignore_type():
                node[name] = value
    if stored:
        raise ConfigError(f'the stored configuration holds unknown keys: {", ".join(sorted(stored))}')
    return config


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> dict[str, tuple]:
    """Dotted key → (old value, new value) of the keys in which two configurations differ, as they are `decided`."""
    a, b = (values(decided(config)) for config in (old, new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}
