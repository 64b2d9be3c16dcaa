"""Rows that are read in runs of many rows, by several threads and before they are needed, and kept while they are."""

import concurrent.futures
from typing import Protocol

import numpy as np

from mlm_jax.files.errors import TransientError

# Reads under way at a time. With 20 ms for a read of 256 KiB, 16 of them bring 200 MiB/s.
THREADS = 16


class SpanSource(Protocol):
    """Rows of which consecutive ones can be read at once.

    Attributes:
      sequence_length: T, the number of tokens in a row.
    """

    sequence_length: int

    def __len__(self) -> int: ...

    def read_span(self, first: int, stop: int) -> np.ndarray:
        """uint16 or uint32 [stop − first, T]: the rows first … stop − 1."""


class BlockCache:
    """The rows of some runs of rows, in memory or on their way there: a `RowSource`.

    Attributes:
      sequence_length: T, the number of tokens in a row.
    """

    def __init__(self, rows: SpanSource, num_threads: int = THREADS):
        """Nothing is read before `hold`."""
        self.sequence_length = rows.sequence_length
        self._rows = rows
        self._pool = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix='rows')
        self._held: dict[int, concurrent.futures.Future[np.ndarray]] = {}  # first row of a run → its rows
        self._stops: dict[int, int] = {}  # first row of a run → its last row + 1
        self._firsts_K = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """The number of rows of the source."""
        return len(self._rows)

    def hold(self, spans: np.ndarray) -> None:
        """Begins to read the runs that are not held yet, and forgets the others.

        Args:
          spans: int64[K, 2], first row and last + 1 of each run, in the order in which they are needed. Runs do not
            overlap, and one that begins at the same row as before also ends at the same row.
        """
        wanted = dict(spans.tolist())
        for first in self._held.keys() - wanted.keys():
            self._held.pop(first).cancel()
        for first, stop in wanted.items():
            if first not in self._held:
                self._held[first] = self._pool.submit(self._rows.read_span, first, stop)
        self._stops, self._firsts_K = wanted, np.sort(np.array(list(wanted), np.int64))

    def read(self, indices: np.ndarray) -> np.ndarray:
        """int32[n, T]: the rows at `indices`, int64[n], which lie in runs that are held; waits until these are read.

        Raises:
          ConfigError: as the source, if it could not read a run; twice, if the error is a TransientError.
        """
        indices = np.asarray(indices, np.int64)
        rows = np.empty((len(indices), self.sequence_length), np.int32)
        firsts_N = self._firsts_K[np.searchsorted(self._firsts_K, indices, side='right') - 1]
        for first in np.unique(firsts_N).tolist():
            mine = firsts_N == first
            rows[mine] = self._rows_of(first)[indices[mine] - first]
        return rows

    def _rows_of(self, first: int) -> np.ndarray:
        """The rows of a run, for which a request that failed for a moment is made once more."""
        try:
            return self._held[first].result()
        except TransientError:
            self._held[first] = self._pool.submit(self._rows.read_span, first, self._stops[first])
            return self._held[first].result()

    def close(self) -> None:
        """Drops what is held, and ends the threads; a read that is under way is not waited for."""
        self.hold(np.zeros((0, 2), np.int64))
        self._pool.shutdown(wait=False, cancel_futures=True)
