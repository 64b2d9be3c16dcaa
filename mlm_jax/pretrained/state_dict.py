"""The parameters of layers from the weights of PyTorch models."""

import jax
import numpy as np

from mlm_jax.interop.state_dict import StateDict


def block_params(
    source: StateDict,
    num_heads: int,
    *,
    query: str,
    key: str,
    value: str,
    out: str,
    attention_norm: str,
    up: str,
    down: str,
    mlp_norm: str,
) -> dict:
    """The parameters of a Block from the names of its linear layers and norms.

    Args:
      source: the weights.
      num_heads: H, which must divide the width.
      query, key, value, out, attention_norm, up, down, mlp_norm: names in `source`, without '.weight' and '.bias'.
    """
    projections = [source.linear(name) for name in (query, key, value)]
    width = projections[0]['kernel'].shape[0]
    if width % num_heads:
        raise ValueError(f'num_heads={num_heads} does not divide the width {width} of {query}')
    heads = (num_heads, width // num_heads)
    output = source.linear(out)
    return {
        'attention': {
            'qkv': {
                'kernel': np.stack([p['kernel'].reshape(width, *heads) for p in projections], axis=1),
                'bias': np.stack([p['bias'].reshape(heads) for p in projections]),
            },
            'out': {'kernel': output['kernel'].reshape(*heads, width), 'bias': output['bias']},
        },
        'attention_norm': source.norm(attention_norm),
        'mlp': {'up': source.linear(up), 'down': source.linear(down)},
        'mlp_norm': source.norm(mlp_norm),
    }


def stack_layers(layers: list[dict]) -> dict:
    """One tree whose leaves have the layers in front."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
