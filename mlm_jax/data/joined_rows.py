"""The rows of several sources as one: one after the other, or in turn as a mixture reads them."""

from collections.abc import Sequence

import numpy as np

from mlm_jax.data.cycles import Cycle
from mlm_jax.data.rows import RowSource, SpanRows


class Joined:
    """The rows of the first source, then those of the second, and so on: `Mixture` numbers rows like this.

    Attributes:
      sequence_length: T, the number of tokens in a row.
    """

    def __init__(self, sources: Sequence[SpanRows]):
        """Joins sources of rows of the same length."""
        self.sequence_length = sources[0].sequence_length
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        """The number of rows of all sources."""
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> np.ndarray:
        """int32[n, T]: the rows at `indices`, int64[n]; raises the errors of the sources."""
        indices = np.asarray(indices)
        source_N = np.searchsorted(self._ends, indices, side='right')
        return _read_each(self._sources, source_N, indices - (self._ends - np.diff(self._ends, prepend=0))[source_N])

    def read_span(self, first: int, stop: int) -> np.ndarray:
        """uint16 or uint32 [stop − first, T]: consecutive rows of one source; raises the errors of that source."""
        source = int(np.searchsorted(self._ends, first, side='right'))
        offset = int(self._ends[source]) - len(self._sources[source])
        return self._sources[source].read_span(first - offset, stop - offset)


class InTurn:
    """The first rows of each source, in turn as a mixture reads them, until one of the sources has no more.

    Attributes:
      sequence_length: T, the number of tokens in a row.
    """

    def __init__(self, sources: Sequence[RowSource], shares: Sequence[int]):
        """`shares`: how often each source comes in a cycle."""
        self.sequence_length = sources[0].sequence_length
        self._sources, self._cycle = sources, Cycle(shares)
        self._length = min(self._cycle.position_of(number, len(source)) for number, source in enumerate(sources))

    def __len__(self) -> int:
        """The number of rows before the first one that a source does not have."""
        return self._length

    def read(self, indices: np.ndarray) -> np.ndarray:
        """int32[n, T]: the rows at `indices`, int64[n]; raises the errors of the sources."""
        return _read_each(self._sources, *self._cycle.locate(indices))


def _read_each(sources: Sequence[RowSource], source_N: np.ndarray, row_N: np.ndarray) -> np.ndarray:
    """int32[n, T]: row `row_N` of source `source_N` each."""
    rows = np.empty((len(row_N), sources[0].sequence_length), np.int32)
    for number, source in enumerate(sources):
        mine = source_N == number
        if mine.any():
            rows[mine] = source.read(row_N[mine])
    return rows
