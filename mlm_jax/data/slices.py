"""Slices: the parts into which a corpus is divided for parallel work.

They depend on the input alone, and not on the machine or the number of processes.
Every document belongs to exactly one slice. A slice is one or several parts of files (`text_files.py`): a range of a
large file, a file that cannot be divided, or a group of small files; or it is a range of the examples of a TFDS split.

The slices are numbered in the order of a hash, so that the first slices, and the first shards that are made from them,
are a random sample of the corpus.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Sequence

from mlm_jax.data import tfds_sets
from mlm_jax.files import buckets, columnar, text_files
from mlm_jax.files.errors import unreadable

SLICE_BYTES = 16 << 20  # ~4 million tokens, about a second of work
MAX_SLICES = 4096  # a larger corpus has larger slices; up to twice as many can result, because files are not merged


@dataclasses.dataclass(frozen=True)
class Part:
    """Part `index` of `count` equal parts of a file or of the examples of a TFDS split.

    Attributes:
      path: the file; '' for examples.
      index: the number of the part, from 0.
      count: the number of parts.
      bytes: the size of the file, or of the split.
      examples: the split, if it is a part of a TFDS data set.
    """

    path: str
    index: int
    count: int
    bytes: int
    examples: tfds_sets.Examples | None = None

    @property
    def range(self) -> tuple[int, int]:
        """The bytes of the file that belong to this part: where they begin and end."""
        return text_files.bounds(self.bytes, self.index, self.count)

    @property
    def num_bytes(self) -> int:
        """The size of this part."""
        start, stop = self.range
        return stop - start

    def __str__(self) -> str:
        name = self.path or (self.examples.directory if self.examples else '')
        return name if self.count == 1 else f'part {self.index + 1} of {self.count} of {name}'


@dataclasses.dataclass(frozen=True)
class Slice:
    """The documents of some parts, as a small object that can be sent to another process.

    Attributes:
      kind: as in `text_files.read`, or 'tfds'.
      text_key: as in `text_files.read`, or the feature that holds the text.
      parts: the parts.
    """

    kind: str
    text_key: str
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        """The size of the input, before any decompression."""
        return sum(part.num_bytes for part in self.parts)

    def documents(self, part: Part) -> Iterator[bytes]:
        """The documents of one of the parts as they are stored; `corpora.clean` converts them to text."""
        if part.examples:
            start, stop = text_files.bounds(part.examples.count, part.index, part.count)
            return part.examples.read(self.text_key, start, stop)
        return text_files.read(buckets.path(part.path), self.kind, self.text_key, part.index, part.count)


def divide_files(
    kind: str, files: Sequence[pathlib.Path], text_key: str, slice_bytes: int | None = None
) -> list[Slice]:
    """Divides files into slices of about `slice_bytes` bytes, by default `SLICE_BYTES`.

    Raises:
      ConfigError: if a file cannot be read, or a large file is not of this kind.
    """
    try:
        sizes = [buckets.size(file) for file in files]
        slice_bytes = slice_bytes or max(SLICE_BYTES, -(-sum(sizes) // MAX_SLICES))
        counts = _counts(kind, files, sizes, slice_bytes)
        parts = (
            Part(str(file), index, count, size)
            for file, size, count in zip(files, sizes, counts)
            for index in range(count)
        )
        return _mixed([Slice(kind, text_key, group) for group in _grouped(parts, slice_bytes)])
    except OSError as error:
        raise unreadable(error.filename, error) from error


def _counts(kind: str, files: Sequence[pathlib.Path], sizes: Sequence[int], slice_bytes: int) -> list[int]:
    """The numbers of parts of files; only those of more than `slice_bytes` bytes are opened."""
    large = [file for file, size in zip(files, sizes) if size > slice_bytes]
    ask = functools.partial(text_files.num_parts, kind=kind, part_bytes=slice_bytes)
    known = dict(zip(large, buckets.ask_each(ask, large)))
    return [known.get(file, 1) for file in files]


def divide_examples(examples: tfds_sets.Examples, text_key: str) -> list[Slice]:
    """Divides the examples of a TFDS split into slices of about `SLICE_BYTES` bytes."""
    count = max(1, min(-(-examples.num_bytes // SLICE_BYTES), MAX_SLICES, examples.count))
    parts = (Part('', index, count, examples.num_bytes, examples) for index in range(count))
    return _mixed([Slice('tfds', text_key, (part,)) for part in parts])


def beginning(whole: Slice) -> Slice:
    """The beginnings of the parts of a large slice, about `SLICE_BYTES` together; all of a part that has no parts."""
    times = -(-whole.num_bytes // SLICE_BYTES)
    if times <= 1 or whole.kind in columnar.KINDS:  # parts of columnar files are of row groups, of which there are few
        return whole
    parts = (
        dataclasses.replace(part, index=part.index * times, count=part.count * times) if part.count > 1 else part
        for part in whole.parts
    )
    return dataclasses.replace(whole, parts=tuple(parts))


def _grouped(parts: Iterator[Part], slice_bytes: int) -> Iterator[tuple[Part, ...]]:
    """Groups of successive parts that have at most `slice_bytes` bytes together, or are one part."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if group and size + part.num_bytes > slice_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(part)
        size += part.num_bytes
    if group:
        yield tuple(group)


def _mixed(in_order: list[Slice]) -> list[Slice]:
    """The slices in the order of a hash of their numbers."""
    ranks = [hashlib.blake2b(str(number).encode(), digest_size=8).digest() for number in range(len(in_order))]
    return [found for _, found in sorted(zip(ranks, in_order), key=lambda pair: pair[0])]
