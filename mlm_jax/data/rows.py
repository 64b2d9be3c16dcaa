"""Batches as a function of the step: the seed and the step alone determine a batch.

There is no shuffle buffer and no iterator state, so a run resumes at any step and on any number of processes with the
same rows. Example j of batch i has the position p = i · batch_size + j in the run. Of the N rows of one directory, it
is row number p mod N in the order of epoch ⌊p/N⌋ (`orders.py`); a mixture first decides which of its sources a position
reads (`cycles.py`). An epoch may end inside a batch, and no row is dropped.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import numpy as np

from mlm_jax.data.block_cache import BlockCache, SpanSource
from mlm_jax.data.orders import Order


class RowSource(Protocol):
    """Rows with random access, on disk or synthetic.

    Attributes:
      sequence_length: T, the number of tokens in a row.
    """

    sequence_length: int

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """int32[n, T]: the rows at `indices`, int64[n]."""


class SpanRows(RowSource, SpanSource, Protocol):
    """Rows with random access that can also be read in runs, such as `Shards`."""


class Batches:
    """The global batches of a run; each process reads only the rows of its own devices.

    If the order has spans, each process reads these whole, ahead of time and once.
    """

    def __init__(self, rows: SpanRows, order: Order, batch_size: int, sharding: jax.sharding.NamedSharding):
        """Global batches of `batch_size` rows in this order, over all processes, with the given sharding."""
        self._rows, self._order, self._batch_size, self._sharding = rows, order, batch_size, sharding
        self._cache: BlockCache | None = None
        self._lock = threading.Lock()

    def positions(self, step: int) -> np.ndarray:
        """int64[B]: the positions in the run of the rows of the global batch of `step`."""
        return np.arange(step * self._batch_size, (step + 1) * self._batch_size)

    def indices(self, step: int) -> np.ndarray:
        """int64[B]: the rows of the global batch of `step`, in order."""
        return self._order(self.positions(step))

    def __call__(self, step: int) -> jax.Array:
        """int32[B, T] on the mesh."""
        positions = self.positions(step)
        with self._lock:  # what one thread is about to read must not be dropped by another
            spans = self._order.spans(int(positions[0]), int(positions[-1]) + 1)
            rows: RowSource = self._rows
            if len(spans):
                self._cache = self._cache or BlockCache(self._rows)
                self._cache.hold(spans)
                rows = self._cache
            return place_rows(_InOrder(rows, self._order), positions, self._sharding)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        with self._lock:
            if self._cache:
                self._cache.close()


class _InOrder:
    """Rows by their positions. Finding rows in an exact permutation takes long, so a process finds only its own."""

    def __init__(self, rows: RowSource, order: Order):
        self.sequence_length, self._rows, self._order = rows.sequence_length, rows, order

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._rows.read(self._order(indices))


def place_rows(rows: RowSource, indices_B: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """int32[B, T] on the mesh; each process reads only the rows of its own devices."""
    read: dict[tuple[int, int], np.ndarray] = {}

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # only shardings of unknown layout have none
        start, stop, _ = index[0].indices(len(indices_B))
        if (start, stop) not in read:  # several devices may hold the same rows, such as those along `tensor`
            read[start, stop] = rows.read(indices_B[start:stop])
        return read[start, stop]

    return jax.make_array_from_callback((len(indices_B), rows.sequence_length), sharding, shard)


class Prefetcher:
    """Produces batches ahead of their use in a thread, and measures how long the consumer waits for them.

    Attributes:
      stall_seconds: the total time that `next` has waited for batches.
    """

    def __init__(self, make_batch: Callable[[int], jax.Array], start: int, stop: int, size: int = 3):
        """Produces the batches `start` … `stop` − 1, at most `size` of them ahead."""
        self.stall_seconds = 0.0
        self._queue: queue.Queue[jax.Array | Exception] = queue.Queue(maxsize=size)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(make_batch, start, stop), daemon=True)
        self._thread.start()

    def _produce(self, make_batch: Callable[[int], jax.Array], start: int, stop: int) -> None:
        try:
            for step in range(start, stop):
                if not self._offer(make_batch(step)):
                    return
        except Exception as error:  # passed to the consumer, which raises it
            self._offer(error)

    def _offer(self, item: jax.Array | Exception) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[jax.Array]:
        return self

    def __next__(self) -> jax.Array:
        start = time.perf_counter()
        item = self._queue.get()
        self.stall_seconds += time.perf_counter() - start
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stops the thread and drops the batches that have not been used."""
        self._closed.set()
        self._thread.join()
