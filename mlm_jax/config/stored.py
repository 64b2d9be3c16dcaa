"""Configurations as runs record them, and the differences between two configurations."""

import json
from typing import Any

import ml_collections

from mlm_jax.config.access import leaves, parent_of, values
from mlm_jax.config.defaults import default_config, kinds
from mlm_jax.config.resolve import decided
from mlm_jax.files.errors import ConfigError

SCALARS = (bool, int, float, str, type(None))  # the types of values that a key can have


def to_json(config: ml_collections.ConfigDict) -> str:
    """The configuration as indented JSON with sorted keys, the format of `config.json` in a workdir."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> ml_collections.ConfigDict:
    """Reads a configuration that `to_json` has written; keys that it does not have get their defaults.

    Raises:
      ConfigError: if the text is not a configuration, or has unknown keys.
    """
    config = default_config()
    try:
        stored = values(ml_collections.ConfigDict(json.loads(text)))
        if wrong := [key for key, value in stored.items() if not isinstance(value, SCALARS)]:
            raise ValueError(f'{wrong[0]} is of type {type(stored[wrong[0]]).__name__}, not a single value')
    except (
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:  # not JSON, or not an object with suitable names
        raise ConfigError(f'the stored configuration is damaged: {error}') from None
    for key, _ in list(leaves(config)):
        if key in stored:
            node, name = parent_of(config, key)
            value, kind = stored.pop(key), kinds()[key]
            if not kind.takes(value):
                raise ConfigError(f'the stored configuration is damaged: {key} is {value!r}')
            with node.ignore_type():
                node[name] = value
    if stored:
        raise ConfigError(f'the stored configuration holds unknown keys: {", ".join(sorted(stored))}')
    return config


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """A dict of dotted key → (old value, new value) with the keys that differ after open keys are `decided`."""
    a, b = (values(decided(config)) for config in (old, new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}
