"""Batches as a function of the step: batch i is decided by (seed, i) alone.

No shuffle buffer and no iterator state: a run resumes at any step, on any number of processes, with the same rows.
Example p of the run, p = i · batch_size + j, is row `permutation_epoch(p mod N)` with epoch = p div N: an epoch may end
inside a batch, and no row is dropped.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import numpy as np


class RowSource(Protocol):
    """Rows on disk, or made up, with random access.

    Attributes:
      sequence_length: T, tokens in a row.
    """

    sequence_length: int

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """int32[n, T]: the rows at `indices`, int64[n]."""


class Batches:
    """The global batches of a run, each process reading only the rows of its own devices."""

    def __init__(self, rows: RowSource, seed: int, batch_size: int, sharding: jax.sharding.NamedSharding):
        """Batches of `batch_size` rows over all processes, laid out by `sharding`."""
        if not len(rows):
            raise ValueError('there are no rows to train on')
        import grain  # here, as benchmarks on synthetic rows need none of it

        self._rows, self._batch_size, self._sharding = rows, batch_size, sharding
        self._permutation = grain.MapDataset.range(len(rows)).shuffle(seed=seed).repeat()

    def indices(self, step: int) -> np.ndarray:
        """int64[B]: the rows of the global batch of `step`, in order."""
        start = step * self._batch_size
        return np.array([self._permutation[p] for p in range(start, start + self._batch_size)], np.int64)

    def __call__(self, step: int) -> jax.Array:
        """int32[B, T] on the mesh."""
        return place_rows(self._rows, self.indices(step), self._sharding)


def place_rows(rows: RowSource, indices_B: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """int32[B, T] on the mesh: each device's share is read by the process that owns it, and by no other."""
    read: dict[tuple[int, int], np.ndarray] = {}

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(len(indices_B))
        if (start, stop) not in read:  # devices along `tensor` hold the same rows
            read[start, stop] = rows.read(indices_B[start:stop])
        return read[start, stop]

    return jax.make_array_from_callback((len(indices_B), rows.sequence_length), sharding, shard)


class Prefetcher:
    """Produces batches in a thread, ahead of their use, and measures how long the consumer waited.

    Attributes:
      stall_seconds: total time that `next` waited for a batch.
    """

    def __init__(self, make_batch: Callable[[int], jax.Array], start: int, stop: int, size: int = 3):
        """Batches `start` … `stop` − 1, at most `size` of them ahead."""
        self.stall_seconds = 0.0
        self._queue: queue.Queue = queue.Queue(maxsize=size)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(make_batch, start, stop), daemon=True)
        self._thread.start()

    def _produce(self, make_batch, start, stop):
        try:
            for step in range(start, stop):
                if not self._offer(make_batch(step)):
                    return
        except Exception as error:  # handed to the consumer, which raises it
            self._offer(error)

    def _offer(self, item) -> bool:
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
        """Stops the thread; batches not yet taken are dropped."""
        self._closed.set()
        self._thread.join()
