"""Packed rows: `.npy` files of [rows, T], read through memory maps, or from a bucket by ranges of bytes.

ArrayRecord, in which TFDS stores the texts, is slower. Reading 256 random rows of T = 128 (2 cores, median of 10–50
reads, pages cached) took

    rows in the file                     20 thousand      1 million
    .npy, memory-mapped                      0.02 ms        0.03 ms
    ArrayRecord, one row per record            30 ms          38 ms      (rows read one by one: 65 and 639 ms)
    ArrayRecord, 256 rows per record          108 ms          17 ms

and a row of 16-bit ids takes 256 bytes, compared with 324 (one row per record) or 232 (compressed blocks).
"""

import concurrent.futures
import pathlib
import re
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import atomic, buckets, maps
from mlm_jax.files.errors import ConfigError, TransientError

_THREADS = 16  # that look at files
_MAPS = maps.RecentMaps()


def row_dtype(vocab_size: int) -> np.dtype:
    """uint16 if it can represent all ids, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_name(split: str, index: int, count: int) -> str:
    """The file name of shard `index` of `count`, such as train-00003-of-00012.npy."""
    return f'{split}-{index:05d}-of-{count:05d}.npy'


def write_rows(path: pathlib.Path, rows: np.ndarray, scratch: pathlib.Path | None = None) -> None:
    """Writes rows, uint16 or uint32 [R, T], as one shard; `atomic.opened` explains `scratch`."""
    write_blocks(path, [rows], rows.shape[1], rows.dtype, scratch)


def write_blocks(
    path: pathlib.Path,
    blocks: Iterable[np.ndarray],
    sequence_length: int,
    dtype: np.dtype,
    scratch: pathlib.Path | None = None,
) -> int:
    """Writes rows as one shard, block by block, so that only one block is in memory at a time.

    Args:
      path: the file.
      blocks: [R, T] each.
      sequence_length: T.
      dtype: the dtype of the rows, uint16 or uint32.
      scratch: as in `atomic.opened`.

    Returns:
      The number of rows.
    """
    stored = dtype.newbyteorder('<')
    num_rows = 0
    with atomic.opened(path, scratch) as file:  # instead of np.save, whose errors do not say why writing failed
        _write_header(file, stored, (0, sequence_length))
        for rows in blocks:
            file.write(np.ascontiguousarray(rows, stored).data.cast('B') if rows.size else b'')
            num_rows += len(rows)
        file.seek(0)
        _write_header(file, stored, (num_rows, sequence_length))  # NumPy pads it so that it has the same size
    return num_rows


def _write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, int]) -> None:
    header = {'descr': dtype.str, 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(file, header)


_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([^']{1,20})', 'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)


def layout(path: pathlib.Path, shape: tuple[int, int], dtype: np.dtype) -> tuple[int, str]:
    """Reads the header of a file: where its rows begin, and what is wrong with the file.

    Args:
      path: the path of a shard.
      shape: the expected shape, [R, T].
      dtype: the expected dtype of the ids.

    Returns:
      The offset of the rows in bytes, and what is wrong as a clause such as 'is missing', or ''.

    Raises:
      TransientError: if the file lies in a bucket that could not be reached.
    """
    try:
        with path.open('rb') as file:
            start, size = file.read(256), file.seek(0, 2)
    except FileNotFoundError:
        return (
            0,
            'is missing' if not path.is_symlink() else f'is a symbolic link to {path.readlink()}, which is missing',
        )
    except OSError as error:
        if _is_unreachable(path, error):
            raise _unreachable(path, error) from error
        return 0, f'cannot be read: {error.strerror or error}'
    header = _HEADER.match(start)
    if not header or header.end() != 10 + int.from_bytes(header[1], 'little'):
        return 0, f'is not a file of rows: it has {size:,} bytes, which do not begin with the header of a NumPy array'
    found_shape = tuple(int(n) for n in header[4].decode().replace(',', ' ').split())
    found_dtype = header[2].decode(errors='replace')
    if found_shape != shape:
        return 0, f'holds {found_shape} ids, but the manifest says {shape}'
    if found_dtype != dtype.newbyteorder('<').str or header[3] != b'False':
        return 0, f'holds numbers of type {found_dtype}, but the manifest says {dtype.name}'
    expected = header.end() + shape[0] * shape[1] * dtype.itemsize
    if size != expected:
        return 0, f'has {size:,} bytes instead of {expected:,}: it was truncated, or something was appended'
    return header.end(), ''


def _is_unreachable(path: pathlib.Path, error: OSError) -> bool:
    """Whether an error tells of the way to a bucket, and not of the file there."""
    is_of_file = isinstance(error, (FileNotFoundError, IsADirectoryError, buckets.ShortenedError))
    return isinstance(path, buckets.BucketPath) and not is_of_file


def _unreachable(path: pathlib.Path, error: OSError) -> TransientError:
    return TransientError(
        f'cannot read {path}: the bucket could not be reached: {error.strerror or error}. Check the network, and '
        'whether you may read the bucket; the same command then resumes'
    )


class _Remote:
    """The rows of a file in a bucket, indexed as its memory map would be; each run of consecutive rows is a request."""

    def __init__(self, path: buckets.BucketPath, dtype: np.dtype, offset: int, shape: tuple[int, int]):
        self._path, self._dtype, self._offset, self._shape = path, dtype, offset, shape

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        numbers = np.arange(*which.indices(len(self))) if isinstance(which, slice) else which
        if not len(numbers):
            return np.empty((0, self._shape[1]), self._dtype)
        numbers, place_N = np.unique(numbers, return_inverse=True)
        begins = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        ends = np.append(begins[1:], len(numbers)) - 1
        row_bytes = self._shape[1] * self._dtype.itemsize
        ranges = [
            (self._offset + int(numbers[begin]) * row_bytes, self._offset + int(numbers[end] + 1) * row_bytes)
            for begin, end in zip(begins, ends, strict=True)
        ]
        rows = np.frombuffer(b''.join(self._path.read_ranges(ranges)), self._dtype)
        return rows.reshape(-1, self._shape[1])[place_N]


class Shards:
    """Random access to the rows of one split. Rows that `prepare` cannot have written are an error.

    Objects are cheap to construct and to pickle: the constructor checks only the headers and sizes of the files, and a
    file is mapped into memory when it is first read.

    Attributes:
      sequence_length: T, the number of tokens in a row.
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
          directory: a directory that `prepare` wrote.
          split: 'train' or 'validation'.
          verify: whether to compare each file with its checksum before its first row is read, which takes a full read.
          manifest: the manifest of the directory, if the caller has loaded it.

        Raises:
          ConfigError: if nothing has been prepared in the directory, there is no such split, or the size, shape or
            dtype of a file differs from the manifest.
        """
        directory = buckets.path(directory).expanduser()
        manifest = manifest or manifest_lib.load(directory)
        shards = manifest.split(split).shards
        self.sequence_length = manifest.sequence_length
        self._directory, self._shards, self._verify = directory, shards, verify
        self._dtype, self._vocabulary = np.dtype(manifest.dtype), manifest.vocabulary
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # on a network file system, each may take long
            self._offsets = list(pool.map(self._offset, range(len(shards))))
        self._ends = np.cumsum([shard.rows for shard in shards])
        self._verified: set[int] = set()
        weakref.finalize(self, _MAPS.forget, id(self))

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._ends[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        weakref.finalize(self, _MAPS.forget, id(self))

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Reads rows.

        Args:
          indices: int[n], each in 0 … len − 1, in any order.

        Returns:
          int32[n, T].

        Raises:
          IndexError: if an index is out of range.
          TransientError: if the rows lie in a bucket that could not be reached.
          ConfigError: if a file is missing or differs from the manifest, or a row is empty or holds an id outside the
            vocabulary.
        """
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f'row {indices.min()} or {indices.max()} lies outside 0 … {len(self) - 1}')
        rows = np.empty((len(indices), self.sequence_length), np.int32)
        shard_n = np.searchsorted(self._ends, indices, side='right')
        for shard in np.unique(shard_n):
            chosen = shard_n == shard
            numbers = indices[chosen] - (self._ends[shard] - self._shards[shard].rows)
            rows[chosen] = self._checked(int(shard), self._some(int(shard), numbers), numbers)
        return rows

    def read_span(self, first: int, stop: int) -> np.ndarray:
        """Reads the consecutive rows first … stop − 1, with one read of each file that holds some of them.

        The rows do not come through the memory map, through which the system would read a few pages at a time.

        Returns:
          uint16 or uint32 [stop − first, T].

        Raises:
          IndexError, ConfigError: as `read`.
        """
        if not 0 <= first <= stop <= len(self):
            raise IndexError(f'rows {first} … {stop - 1} lie outside 0 … {len(self) - 1}')
        rows = np.empty((stop - first, self.sequence_length), self._dtype.newbyteorder('<'))
        done = 0
        while done < len(rows):
            shard = int(np.searchsorted(self._ends, first + done, side='right'))
            start = first + done - int(self._ends[shard] - self._shards[shard].rows)
            part = rows[done : done + self._shards[shard].rows - start]
            self._read_into(shard, start, part)
            self._checked(shard, part, np.arange(start, start + len(part)))
            done += len(part)
        return rows

    def _read_into(self, shard: int, start: int, rows: np.ndarray) -> None:
        """Fills `rows` with rows of one file, from its row `start` on."""
        if isinstance(self._directory, buckets.BucketPath):
            rows[:] = self._some(shard, slice(start, start + len(rows)))
            return
        self._verify_once(shard)
        left = memoryview(rows.data).cast('B')
        try:
            # Opened anew for each block: thousands of shards would need as many descriptors.
            with open(self._path(shard), 'rb', buffering=0) as file:
                file.seek(self._offsets[shard] + start * rows[0].nbytes)
                while left and (count := file.readinto(left)):
                    left = left[count:]
        except OSError as error:
            raise self._unreadable(shard, error) from error
        if left:
            raise self._damaged(shard, 'was truncated while this program ran')

    def blocks(self, max_rows: int | None = None) -> Iterator[np.ndarray]:
        """Yields all rows, or the first `max_rows` of each shard, one shard at a time: uint16 or uint32 [R, T]."""
        for shard in range(len(self._shards)):
            mapped = self._some(shard, slice(max_rows))
            yield self._checked(shard, mapped, np.arange(len(mapped)))

    def _checked(self, shard: int, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The rows, whose indices are `numbers`; raises ConfigError if `prepare` cannot have written one of them."""
        if not rows.size:
            return rows
        if rows.max() >= self._vocabulary.size:
            number = numbers[rows.max(axis=1).argmax()]
            raise self._damaged(
                shard, f'holds the id {rows.max()} in row {number}, but there are only {self._vocabulary.size} ids'
            )
        empty = np.flatnonzero(
            rows[:, 0] == self._vocabulary.pad_id
        )  # few rows begin so; only these are examined whole
        empty = empty[(rows[empty] == self._vocabulary.pad_id).all(axis=1)]
        if len(empty):
            raise self._damaged(shard, f'holds only padding in row {numbers[empty[0]]}')
        return rows

    def _some(self, shard: int, which: np.ndarray | slice) -> np.ndarray:
        """[n, T]: some rows of one file."""
        self._verify_once(shard)
        if not self._shards[shard].rows:  # which cannot be mapped
            return np.empty(self._shape(shard), self._dtype)[which]
        try:
            if isinstance(self._directory, buckets.BucketPath):
                path, dtype = self._directory / self._shards[shard].file, self._dtype.newbyteorder('<')
                return _Remote(path, dtype, self._offsets[shard], self._shape(shard))[which]
            return _MAPS.get(id(self), shard, lambda: self._map(shard))[which]
        except OSError as error:
            raise self._unreadable(shard, error) from error

    def _map(self, shard: int) -> np.memmap:
        """The memory map of a file, which may have changed since its header was read."""
        dtype, offset = self._dtype.newbyteorder('<'), self._offset(shard)
        return np.memmap(self._path(shard), dtype, 'r', offset, self._shape(shard))

    def _verify_once(self, shard: int) -> None:
        known = self._shards[shard].sha256
        if not self._verify or not known or shard in self._verified:
            return
        try:
            is_same = atomic.sha256(self._path(shard)) == known
        except OSError as error:
            raise self._unreadable(shard, error) from error
        if not is_same:
            raise self._damaged(shard, manifest_lib.CHANGED)
        self._verified.add(shard)

    def _path(self, shard: int) -> pathlib.Path:
        return self._directory / self._shards[shard].file

    def _shape(self, shard: int) -> tuple[int, int]:
        return self._shards[shard].rows, self.sequence_length

    def _offset(self, shard: int) -> int:
        """The offset of the rows in a file; raises ConfigError if the file differs from the manifest."""
        offset, wrong = layout(self._path(shard), self._shape(shard), self._dtype)
        if wrong:
            raise self._damaged(shard, wrong)
        return offset

    def _unreadable(self, shard: int, error: OSError) -> ConfigError:
        if error.errno in maps.TOO_MANY_OPEN:
            return ConfigError(
                f'cannot open {self._path(shard)}: {error.strerror}. This process may have '
                f'{maps.open_files_limit():,} files open: raise that with `ulimit -n 16384`, or close other programs'
            )
        if _is_unreachable(self._path(shard), error):
            return _unreachable(self._path(shard), error)
        return self._damaged(shard, f'cannot be read: {error.strerror or error}')

    def _damaged(self, shard: int, wrong: str) -> ConfigError:
        return ConfigError(
            f'cannot read {self._path(shard)}: it {wrong}; copy it again, or run the same '
            'prepare again, which makes damaged files again'
        )
