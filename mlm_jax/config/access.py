"""The values of a configuration by their dotted keys."""

import ml_collections


def values(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Dotted key → value, of every key of `config`."""
    return dict(leaves(config))


def leaves(node: ml_collections.ConfigDict, prefix: str = ''):
    for key in node:
        value = node[key]
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def get(config: ml_collections.ConfigDict, key: str):
    """The value of a dotted key."""
    for part in key.split('.'):
        config = config[part]
    return config
