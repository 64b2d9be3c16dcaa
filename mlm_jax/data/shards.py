"""Packed rows on disk: `.npy` files of [rows, T], read through memory maps.

Why not ArrayRecord, in which TFDS keeps the texts: reading 256 rows of T = 128 at random (2 cores, median of
10–50 reads, pages cached) took

    rows in the file                20 thousand      1 million
    .npy, memory-mapped                 0.02 ms        0.03 ms
    ArrayRecord, a row a record           30 ms          38 ms      (one by one: 65 and 639 ms)
    ArrayRecord, 256 rows a record       108 ms          17 ms

and a row of 16-bit ids takes 256 bytes against 324 (a row a record) or 232 (compressed blocks).
"""

import pathlib

import numpy as np

from mlm_jax import config as config_lib
from mlm_jax.data import atomic
from mlm_jax.data import manifest as manifest_lib


def row_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds all ids."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_name(split: str, index: int, count: int) -> str:
    """The file name of shard `index` of `count`, such as train-00003-of-00012.npy."""
    return f'{split}-{index:05d}-of-{count:05d}.npy'


def write_rows(path: pathlib.Path, rows: np.ndarray, scratch: pathlib.Path | None = None) -> None:
    """Writes rows, uint16 or uint32 [R, T], as one shard; `atomic.write` explains `scratch`."""
    atomic.write(path, lambda file: np.save(file, rows, allow_pickle=False), scratch)


class Shards:
    """Random access to the rows of one split.

    Cheap to construct and to pickle: files are opened when first read.
    """

    def __init__(self, directory: str | pathlib.Path, split: str):
        """Finds the shards of `split` in the manifest of `directory`.

        Raises:
          ConfigError: when nothing has been prepared there, or there is no such split.
        """
        directory = pathlib.Path(directory).expanduser()
        manifest = manifest_lib.load(directory)
        shards = manifest.split(split).shards
        self.sequence_length = manifest.sequence_length
        self._paths = [directory / shard.file for shard in shards]
        self._ends = np.cumsum([shard.rows for shard in shards])
        self._maps = {}

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._ends[-1])

    def __getstate__(self):
        return {**self.__dict__, '_maps': {}}

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Reads rows.

        Args:
          indices: int[n], each 0 … len − 1, in any order.

        Returns:
          int32[n, T].

        Raises:
          IndexError: for an index outside.
          ConfigError: when a file is missing or is not the one of the manifest.
        """
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f'row {indices.min()} or {indices.max()} lies outside 0 … {len(self) - 1}')
        rows = np.empty((len(indices), self.sequence_length), np.int32)
        shard_n = np.searchsorted(self._ends, indices, side='right')
        for shard in np.unique(shard_n):
            chosen = shard_n == shard
            mapped = self._open(int(shard))
            rows[chosen] = mapped[indices[chosen] - (self._ends[shard] - len(mapped))]
        return rows

    def _open(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            path = self._paths[shard]
            expected = (int(np.diff(self._ends, prepend=0)[shard]), self.sequence_length)
            try:
                mapped = np.load(path, mmap_mode='r')
            except (OSError, ValueError) as error:
                raise config_lib.ConfigError(
                    f'cannot read {path} ({error}); copy it again, or prepare again'
                ) from error
            if mapped.shape != expected:
                raise config_lib.ConfigError(
                    f'{path} holds {mapped.shape} ids, its manifest says {expected}: copy it again, or prepare again'
                )
            self._maps[shard] = mapped
        return self._maps[shard]
