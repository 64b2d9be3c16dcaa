"""Orders of rows: which row comes at a position, for every epoch, as a function of the seed and the position alone.

`Permutation` is an exact permutation of all rows. On a local disk, or with enough memory for the pages of the files, a
row is read in microseconds. On a network file system, each read takes milliseconds however small it is.

`BlockPermutation` is for such disks: a permutation of blocks of consecutive rows, and within each window of blocks a
permutation of their rows. A window is read in whole blocks, before it is needed, and is kept in memory meanwhile
(`block_cache.py`). Two rows of a batch are from the same block with probability about 1/W, where W is the number of
blocks of a window; in an exact permutation, with about b/N, where b is the number of rows of a block.
"""

import functools
from typing import Protocol

import numpy as np

_BLOCKS, _ROWS = 0, 1  # streams of random numbers


class Order(Protocol):
    """An order in which rows are read: once each in every epoch."""

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64[n]: the rows at `positions`, int64[n], counted from the start of the first epoch."""

    def spans(self, start: int, stop: int) -> np.ndarray:
        """The rows that are best read now.

        Args:
          start: the first position that is needed.
          stop: the position after the last one.

        Returns:
          int64[K, 2]: runs of rows, first and last + 1, with all rows at these positions and at some that follow, in
          the order in which they are needed; K = 0 if rows are read one by one.
        """


class Permutation:
    """Every epoch is a permutation of all rows."""

    def __init__(self, num_rows: int, seed: int):
        """The order of `num_rows` rows."""
        _check_rows(num_rows)
        import grain  # imported here, because benchmarks on synthetic rows do not need it

        self._row = grain.MapDataset.range(num_rows).shuffle(seed=seed).repeat()

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64[n]: the rows at `positions`."""
        return np.array([self._row[p] for p in positions.tolist()], np.int64)

    def spans(self, start: int, stop: int) -> np.ndarray:
        """int64[0, 2]: rows are read one by one."""
        return np.zeros((0, 2), np.int64)


class BlockPermutation:
    """Every epoch is a permutation of blocks, divided into windows within which rows are permuted.

    The windows of an epoch have as many blocks as each other, up to one. Rows beyond the last whole block come with the
    last window of each epoch.
    """

    def __init__(self, num_rows: int, seed: int, block_rows: int, window_blocks: int):
        """The order of `num_rows` rows in blocks of `block_rows`, at most `window_blocks` in a window."""
        _check_rows(num_rows)
        self._num_rows, self._seed, self._block_rows = num_rows, seed, block_rows
        self._num_blocks = num_rows // block_rows
        self._num_windows = max(1, -(-self._num_blocks // window_blocks))
        # A batch lies in one window, or at the border of two; the blocks of the next one are read ahead.
        self._blocks_of_epoch = functools.lru_cache(2)(self._permute_blocks)
        self._rows_of_window = functools.lru_cache(3)(self._permute_rows)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64[n]: the rows at `positions`."""
        positions = np.asarray(positions, np.int64)
        window_N, rows_N = self._window_of(positions), np.empty(len(positions), np.int64)
        for window in np.unique(window_N).tolist():
            mine = window_N == window
            rows_N[mine] = self._rows_of_window(window)[positions[mine] - self._first_position(window)]
        return rows_N

    def spans(self, start: int, stop: int) -> np.ndarray:
        """int64[K, 2]: the blocks of the windows of these positions, and of the window that follows."""
        first, last = self._window_of(np.array([start, stop - 1])).tolist()
        firsts = np.concatenate([self._first_rows(window) for window in range(first, last + 2)])
        _, place = np.unique(firsts, return_index=True)  # two windows at the border of epochs may share blocks
        return self._spans(firsts[np.sort(place)])

    def _spans(self, firsts: np.ndarray) -> np.ndarray:
        return np.stack([firsts, np.minimum(firsts + self._block_rows, self._num_rows)], axis=1)

    def _window_of(self, positions: np.ndarray) -> np.ndarray:
        """int64[n]: the windows of positions, numbered through all epochs."""
        epoch, p = np.divmod(positions, self._num_rows)
        block = np.minimum(p // self._block_rows, max(0, self._num_blocks - 1))
        return epoch * self._num_windows + ((block + 1) * self._num_windows - 1) // max(1, self._num_blocks)

    def _place(self, window: int) -> tuple[int, int, int]:
        """The epoch of a window, and the places of its first block and of the one after its last in that epoch."""
        epoch, window = divmod(window, self._num_windows)
        start, stop = (w * self._num_blocks // self._num_windows for w in (window, window + 1))
        return epoch, start, stop

    def _first_position(self, window: int) -> int:
        epoch, start, _ = self._place(window)
        return epoch * self._num_rows + start * self._block_rows

    def _first_rows(self, window: int) -> np.ndarray:
        """int64[n]: the first row of each block of a window."""
        epoch, start, stop = self._place(window)
        blocks = self._blocks_of_epoch(epoch)[start:stop]
        if stop == self._num_blocks and self._num_blocks * self._block_rows < self._num_rows:
            blocks = np.append(blocks, self._num_blocks)  # the rest, which is no whole block
        return blocks * self._block_rows

    def _permute_rows(self, window: int) -> np.ndarray:
        """int64[n]: the rows of a window in their order."""
        rows = np.concatenate([np.arange(*span) for span in self._spans(self._first_rows(window)).tolist()])
        return _generator(_ROWS, self._seed, window).permutation(rows)

    def _permute_blocks(self, epoch: int) -> np.ndarray:
        """int64[n]: the blocks of an epoch in their order."""
        return _generator(_BLOCKS, self._seed, epoch).permutation(self._num_blocks)


def _check_rows(num_rows: int) -> None:
    if not num_rows:
        raise ValueError('there are no rows to train on')


def _generator(*seeds: int) -> np.random.RandomState:
    """Random numbers that all versions of NumPy draw alike, as its newer generators do not promise."""
    return np.random.RandomState(np.array(seeds, np.uint32))
