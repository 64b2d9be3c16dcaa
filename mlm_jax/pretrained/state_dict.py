"""Reading the weights of PyTorch models strictly, by name."""

from collections.abc import Mapping

import jax
import numpy as np


class StateDict:
    """A mapping of names to arrays that knows which were read, so that nothing is dropped unnoticed."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays, self._unread = arrays, set(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        """The array as float32; ValueError where there is none."""
        if name not in self._arrays:
            raise ValueError(f'the state dict has no {name!r}; its names look like {", ".join(list(self._arrays)[:3])}')
        self._unread.discard(name)
        return np.asarray(self._arrays[name], np.float32)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def linear(self, name: str) -> dict[str, np.ndarray]:
        """A torch.nn.Linear: the kernel is [inputs, outputs] here."""
        return {'kernel': self[f'{name}.weight'].T, 'bias': self[f'{name}.bias']}

    def norm(self, name: str) -> dict[str, np.ndarray]:
        """A torch.nn.LayerNorm."""
        return {'scale': self[f'{name}.weight'], 'bias': self[f'{name}.bias']}

    def skip_equal(self, name: str, array: np.ndarray) -> None:
        """Marks a copy of `array` as read, if it is there; ValueError where it differs."""
        if name in self and not np.array_equal(self[name], array):
            raise ValueError(f'{name} differs from the weight that it is tied to; untied weights have no place here')

    def skip(self, *names: str) -> None:
        """Marks names as read that hold nothing to keep."""
        self._unread.difference_update(names)

    def check_all_read(self) -> None:
        """Raises ValueError with the names that nothing has read."""
        if self._unread:
            raise ValueError(f'the state dict holds weights without a place here: {", ".join(sorted(self._unread))}')


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
