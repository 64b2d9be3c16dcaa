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
import re
from collections.abc import Iterator

import numpy as np

from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import atomic
from mlm_jax.files.errors import ConfigError


def row_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds all ids."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_name(split: str, index: int, count: int) -> str:
    """The file name of shard `index` of `count`, such as train-00003-of-00012.npy."""
    return f'{split}-{index:05d}-of-{count:05d}.npy'


def write_rows(path: pathlib.Path, rows: np.ndarray, scratch: pathlib.Path | None = None) -> None:
    """Writes rows, uint16 or uint32 [R, T], as one shard; `atomic.write` explains `scratch`."""

    def fill(file):  # as np.save does, which does not say why it could not write
        header = {'descr': rows.dtype.newbyteorder('<').str, 'fortran_order': False, 'shape': rows.shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(rows, rows.dtype.newbyteorder('<')).data.cast('B') if rows.size else b'')

    atomic.write(path, fill, scratch)


_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([^']{1,20})', 'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)


def layout(path: pathlib.Path, shape: tuple[int, int], dtype: np.dtype) -> tuple[int, str]:
    """Where the rows of a file begin, and what is wrong with it; of its content, the header alone is read.

    Args:
      path: of a shard.
      shape: [R, T] that it should have.
      dtype: of its ids.

    Returns:
      The offset in bytes, and '' or a clause about the file ('is missing').
    """
    try:
        with open(path, 'rb') as file:
            start, size = file.read(256), file.seek(0, 2)
    except FileNotFoundError:
        return (
            0,
            'is missing' if not path.is_symlink() else f'is a symbolic link to {path.readlink()}, which is missing',
        )
    except OSError as error:
        return 0, f'cannot be read: {error.strerror or error}'
    header = _HEADER.match(start)
    if not header or header.end() != 10 + int.from_bytes(header[1], 'little'):
        return 0, f'is no file of rows: it has {size:,} bytes, and they do not begin as those of NumPy do'
    found_shape = tuple(int(n) for n in header[4].decode().replace(',', ' ').split())
    found_dtype = header[2].decode(errors='replace')
    if found_shape != shape:
        return 0, f'holds {found_shape} ids, its manifest says {shape}'
    if found_dtype != dtype.newbyteorder('<').str or header[3] != b'False':
        return 0, f'holds numbers of type {found_dtype}, its manifest says {dtype.name}'
    expected = header.end() + shape[0] * shape[1] * dtype.itemsize
    if size != expected:
        return 0, f'has {size:,} bytes and not {expected:,}: it was cut off, or something was added'
    return header.end(), ''


class Shards:
    """Random access to the rows of one split, which are not trusted: what no preparation writes is refused.

    Cheap to construct and to pickle: of the files, headers and sizes are looked at; they are mapped when first read.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        split: str,
        verify: bool = False,
        manifest: manifest_lib.Manifest | None = None,
    ):
        """Finds the shards of `split` in the manifest of `directory`.

        Args:
          directory: that `prepare` wrote.
          split: 'train' or 'validation'.
          verify: compares each file with its hash before its first row is read: for splits of which little is read.
          manifest: of the directory, where it is at hand.

        Raises:
          ConfigError: when nothing has been prepared there, there is no such split, or a file is not that of the
            manifest by its size, shape or dtype.
        """
        directory = pathlib.Path(directory).expanduser()
        manifest = manifest or manifest_lib.load(directory)
        shards = manifest.split(split).shards
        self.sequence_length = manifest.sequence_length
        self._directory, self._shards, self._verify = directory, shards, verify
        self._dtype, self._vocabulary = np.dtype(manifest.dtype), manifest.vocabulary
        for shard in range(len(shards)):
            self._offset(shard)
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
          ConfigError: when a file is missing or is not the one of the manifest, or one of the rows holds an id
            outside the vocabulary, or nothing.
        """
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f'row {indices.min()} or {indices.max()} lies outside 0 … {len(self) - 1}')
        rows = np.empty((len(indices), self.sequence_length), np.int32)
        shard_n = np.searchsorted(self._ends, indices, side='right')
        for shard in np.unique(shard_n):
            chosen = shard_n == shard
            mapped = self._open(int(shard))
            first = self._ends[shard] - len(mapped)
            rows[chosen] = self._checked(int(shard), mapped[indices[chosen] - first], indices[chosen] - first)
        return rows

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, uint16 or uint32 [R, T], a shard at a time."""
        for shard in range(len(self._shards)):
            mapped = self._open(shard)
            yield self._checked(shard, mapped, np.arange(len(mapped)))

    def _checked(self, shard: int, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The rows; ConfigError when one of them cannot come from a preparation. `numbers` are theirs in the shard."""
        if not rows.size:
            return rows
        if rows.max() >= self._vocabulary.size:
            number = numbers[rows.max(axis=1).argmax()]
            raise self._damaged(
                shard, f'holds the id {rows.max()} in row {number}, and there are {self._vocabulary.size} ids'
            )
        empty = np.flatnonzero(rows[:, 0] == self._vocabulary.pad_id)  # few begin so, and those are looked at whole
        empty = empty[(rows[empty] == self._vocabulary.pad_id).all(axis=1)]
        if len(empty):
            raise self._damaged(shard, f'holds nothing but padding in row {numbers[empty[0]]}')
        return rows

    def _open(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            name, count, known = (getattr(self._shards[shard], key) for key in ('file', 'rows', 'sha256'))
            path, offset, shape = self._directory / name, self._offset(shard), (count, self.sequence_length)
            try:
                if self._verify and known and atomic.sha256(path) != known:
                    raise self._damaged(shard, manifest_lib.CHANGED)
                dtype = self._dtype.newbyteorder('<')
                mapped = np.memmap(path, dtype, 'r', offset, shape) if count else np.empty(shape, self._dtype)
            except OSError as error:  # it was there a moment ago
                raise self._damaged(shard, error.strerror or str(error)) from error
            self._maps[shard] = mapped
        return self._maps[shard]

    def _offset(self, shard: int) -> int:
        """Where the rows begin in a file; ConfigError when it is not that of the manifest."""
        path, shape = self._directory / self._shards[shard].file, (self._shards[shard].rows, self.sequence_length)
        offset, wrong = layout(path, shape, self._dtype)
        if wrong:
            raise self._damaged(shard, wrong)
        return offset

    def _damaged(self, shard: int, wrong: str) -> ConfigError:
        return ConfigError(
            f'cannot read {self._directory / self._shards[shard].file}: it {wrong}; copy it again, or run the same '
            'prepare again, which makes anew what is damaged'
        )
