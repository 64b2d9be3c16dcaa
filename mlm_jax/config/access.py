"""Access to the values of a configuration by dotted keys."""

import difflib
from collections.abc import Collection, Iterator
from typing import Any

import ml_collections


def values(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A dict of dotted key → value with every key of `config`."""
    return dict(leaves(config))


def leaves(node: ml_collections.ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yields every dotted key of `node`, after `prefix`, with its value."""
    for key in node:
        value = node[key]
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def get(config: ml_collections.ConfigDict, key: str) -> Any:
    """The value of a dotted key: a number, a text, or a part of the configuration."""
    for part in key.split('.'):
        config = config[part]
    return config


def parent_of(config: ml_collections.ConfigDict, key: str) -> tuple[ml_collections.ConfigDict, str]:
    """The part of the configuration that holds a dotted key, and the name of the key in that part."""
    parent, _, name = key.rpartition('.')
    return get(config, parent) if parent else config, name


def unknown(key: str, known: Collection[str]) -> str:
    """The message that a key is none of those that exist; it names close ones."""
    close = difflib.get_close_matches(key, known, n=3)
    return f'unknown configuration key {key!r}' + (f'; did you mean {" or ".join(close)}?' if close else '')
