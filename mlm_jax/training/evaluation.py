"""The held-out loss, with masks that are the same at every evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mlm_jax.data.rows import RowSource, place_rows
from mlm_jax.files.errors import ConfigError
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
            raise ConfigError(
                'there are no held-out rows: raise data.validation_percent, or set data.validation_corpus'
            )
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


class HeldOutSources:
    """The held-out rows of one directory, or of each source of a mixture."""

    def __init__(
        self,
        rows: Mapping[str, RowSource],
        weights: Mapping[str, float],
        max_rows: int,
        batch_size: int,
        pad_id: int,
        sharding: jax.sharding.NamedSharding,
    ):
        """At most `max_rows` rows, the same number of each source; other arguments are as those of `HeldOut`.

        Args:
          rows: name of a source → its rows.
          weights: name of a source → its share of the mixture; they add up to 1.
        """
        each = max(1, max_rows // len(rows))
        self._parts = {name: HeldOut(found, each, batch_size, pad_id, sharding) for name, found in rows.items()}
        self._weights = weights

    def evaluate(self, eval_step: Callable, params: Any) -> dict[str, float]:
        """The means of `HeldOut`; of a mixture their means by weights, and those of each source as '<name>/<metric>'.

        The masks of a source are those of a run on its directory alone.
        """
        found = {name: part.evaluate(eval_step, params) for name, part in self._parts.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        metrics = next(iter(found.values()))
        mean = {m: sum(self._weights[name] * found[name][m] for name in found) for m in metrics}
        return mean | {f'{name}/{m}': value for name in found for m, value in found[name].items()}

    def describe(self, metrics: Mapping[str, float]) -> str:
        """What belongs behind the loss: `masked_nll` where that is another number, and the losses of several sources.

        The loss of ExLM, and that of weighted masks, does not compare with that of MLM; `masked_nll` does.
        """
        loss, nats = (f'{metrics.get(name, metrics["loss"]):.4f}' for name in ('loss', 'masked_nll'))
        shown = '' if nats == loss else f', {nats} nats per masked token'
        if len(self._parts) == 1:
            return shown
        losses = [f'{name} {metrics[f"{name}/loss"]:.4f}' for name in self._parts]
        return f'{shown} ({", ".join(losses)})'

    @property
    def example(self) -> tuple[jax.Array, jax.Array]:
        """As `HeldOut.example`; the batches of all sources have the same shape."""
        return next(iter(self._parts.values())).example


class _PaddedRows:
    def __init__(self, rows: RowSource, count: int, pad_id: int):
        self._rows, self._count, self._pad_id = rows, count, pad_id
        self.sequence_length = rows.sequence_length

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray) -> np.ndarray:
        tokens = self._rows.read(np.minimum(indices, self._count - 1))
        return np.where((indices < self._count)[:, None], tokens, self._pad_id).astype(np.int32)
