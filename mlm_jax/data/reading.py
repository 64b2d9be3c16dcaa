"""Reads the texts of a slice: documents are divided into training and held-out text, and repaired."""

import collections
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlm_jax.data import corpora, slices, sources

SPLITS = ('train', 'validation')


class Reading:
    """One reading of a slice.

    Attributes:
      documents: split → how many documents were read.
      repairs: split → repair → how many times it was made.
      states: for each part of the slice its checksum, as `sources.observe` returns it.
    """

    def __init__(self, whole: slices.Slice, threshold: int, known: Sequence[Mapping[str, Any]] = ()):
        """Prepares to read `whole`.

        Args:
          whole: the slice.
          threshold: documents with a smaller hash are held out.
          known: the states of the parts from an earlier reading of the slice, if there was one.

        Raises:
          ConfigError: if a file has changed since then, or cannot be read.
        """
        self._slice, self._threshold = whole, threshold
        self.documents: collections.Counter[str] = collections.Counter()
        self.repairs: dict[str, collections.Counter[str]] = {split: collections.Counter() for split in SPLITS}
        self.states = [
            sources.observe(part, known[number] if known else None) for number, part in enumerate(whole.parts)
        ]

    def texts(self) -> Iterator[tuple[str, int, list[bytes]]]:
        """Yields the split of each document, its hash, and its texts: none if it is empty, several if it is long.

        Raises:
          ConfigError: if a part cannot be read, changes meanwhile, or most of its documents need the same repair.
        """
        for part, state in zip(self._slice.parts, self.states):
            before, count = self._repaired(), 0
            for document in self._slice.documents(part):
                digest = document_hash(document)
                split = SPLITS[digest < self._threshold]
                self.documents[split] += 1
                texts = corpora.clean(document, self.repairs[split])
                count += bool(texts)
                yield split, digest, texts
            corpora.check_repairs(self._repaired() - before, count, str(part))
            sources.check_unchanged(part, state)

    def _repaired(self) -> collections.Counter[str]:
        return self.repairs['train'] + self.repairs['validation']


def document_hash(document: bytes) -> int:
    """A hash of a document, 0 … 2⁶⁴ − 1, which does not depend on the file that holds it."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest())
