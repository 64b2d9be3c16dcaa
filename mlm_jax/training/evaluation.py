"""The held-out loss, with masks that are the same at every evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mlm_jax.data.rows import RowSource, place_rows
from mlm_jax.parallel.mesh import replicated
from mlm_jax.training.metrics import MetricsWindow


class HeldOut:
    """Held-out rows, which are placed on the mesh only once, and their loss.

    The last batch is completed with rows of padding; they have no masked positions and therefore no weight.
    """

    def __init__(
        self, rows: RowSource, max_rows: int, batch_size: int, pad_id: int, sharding: jax.sharding.NamedSharding
    ):
        """The first `max_rows` of `rows`, in batches of at most `batch_size` rows laid out by `sharding`."""
        count = min(len(rows), max_rows)
        if not count:
            raise ValueError('there are no held-out rows: raise data.validation_percent, or set data.validation_corpus')
        padded = _PaddedRows(rows, count, pad_id)
        self.num_rows = count
        self._batches = [
            (
                place_rows(padded, np.arange(first, first + batch_size), sharding),
                jax.device_put(np.int32(first), replicated(sharding.mesh)),
            )
            for first in range(0, count, batch_size)
        ]

    def evaluate(self, eval_step: Callable, params: Any) -> dict[str, float]:
        """Means over all masked tokens of the held-out rows: `loss` in nats, and the metrics of the objective."""
        window = MetricsWindow()
        for tokens_BxT, first_row in self._batches:
            window.add(eval_step(params, tokens_BxT, first_row))
        return window.mean()

    @property
    def example(self) -> tuple[jax.Array, jax.Array]:
        """One batch, for compiling the evaluation step: int32[B, T], and int32[], the index of its first row."""
        return self._batches[0]


class _PaddedRows:
    def __init__(self, rows: RowSource, count: int, pad_id: int):
        self._rows, self._count, self._pad_id = rows, count, pad_id
        self.sequence_length = rows.sequence_length

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray) -> np.ndarray:
        tokens = self._rows.read(np.minimum(indices, self._count - 1))
        return np.where((indices < self._count)[:, None], tokens, self._pad_id).astype(np.int32)
