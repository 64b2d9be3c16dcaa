"""Held-out documents between the two phases of encoding.

The first phase finds them, slice by slice, and writes their tokens to one file for each slice. The second phase divides
them among shards by their hashes, and orders them by hash, so that each shard is a random sample of the corpus.

A file consists of runs, each ordered by hash: the hashes uint64[D], the lengths uint32[D], and the tokens of all D
documents.
"""

import pathlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

_HASH, _LENGTH = np.dtype('<u8'), np.dtype('<u4')


def write_run(file: BinaryIO, hashes: Sequence[int], documents: Sequence[np.ndarray], dtype: np.dtype) -> list[int]:
    """Appends the tokens of documents; returns the numbers of documents and of tokens, which `read` needs."""
    keys = np.array(hashes, _HASH)
    order = np.argsort(keys, kind='stable')
    lengths = np.array([len(documents[i]) for i in order], _LENGTH)
    file.write(keys[order].tobytes())
    file.write(lengths.tobytes())
    for number in order:
        file.write(documents[number].astype(dtype.newbyteorder('<')).tobytes())
    return [len(documents), int(lengths.sum())]


def read(
    path: pathlib.Path, runs: Sequence[Sequence[int]], low: int, high: int, dtype: np.dtype
) -> tuple[list[int], list[np.ndarray]]:
    """The hashes in low … high − 1, and the tokens of their documents; both in the order of the file."""
    hashes: list[int] = []
    documents: list[np.ndarray] = []
    with path.open('rb') as file:
        start = 0
        for count, num_tokens in runs:
            file.seek(start)
            keys = np.frombuffer(file.read(count * _HASH.itemsize), _HASH)
            lengths = np.frombuffer(file.read(count * _LENGTH.itemsize), _LENGTH)
            first = int(np.searchsorted(keys, np.uint64(low)))
            last = int(np.searchsorted(keys, np.uint64(high - 1), side='right'))
            ends = np.cumsum(lengths, dtype=np.int64)
            begin, end = (int(ends[place - 1]) if place else 0 for place in (first, last))
            tokens_at = start + count * (_HASH.itemsize + _LENGTH.itemsize)
            file.seek(tokens_at + begin * dtype.itemsize)
            tokens = np.frombuffer(file.read((end - begin) * dtype.itemsize), dtype.newbyteorder('<'))
            hashes += keys[first:last].tolist()
            documents += np.split(tokens, ends[first : last - 1] - begin) if last > first else []
            start = tokens_at + num_tokens * dtype.itemsize
    return hashes, documents
