"""Reading the weights of PyTorch models strictly, by name."""

from collections.abc import Iterator, Mapping

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

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

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
