"""Mixtures: the rows of several sources in turn (`cycles.py`), and where a run goes on in each of them.

Each source counts its own epochs, and each epoch has its own order (`orders.py`). If the shares change when a run is
resumed, a new count of cycles begins there, and every source goes on with the row at which it stopped: a `Reading`,
which checkpoints hold, says from where.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlm_jax.data.cycles import Cycle
from mlm_jax.data.orders import Order
from mlm_jax.files.errors import ConfigError

# Seeds of sources lie far apart, because epochs take seeds that follow each other.
_SEED_STEP = 0x9E3779B1


@dataclasses.dataclass(frozen=True)
class Reader:
    """One source of a run.

    Attributes:
      name: of the source.
      fingerprint: of its training rows (`Manifest.fingerprint`); '' in checkpoints of earlier versions.
      rows: the number of its training rows.
      share: how often it comes in a cycle; 0 if the run no longer reads it.
      number: decides the seed of its permutations; a source keeps it when others come or go.
      window: how many blocks are mixed, if rows are read in blocks; a source keeps it when shares change, as its order
        depends on it.
      consumed: how many of its rows had been read at the start of the `Reading`.
      held_out: the fingerprint of its held-out rows; '' in checkpoints of earlier versions.
    """

    name: str
    fingerprint: str
    rows: int
    share: int
    number: int
    window: int = 1
    consumed: int = 0
    held_out: str = ''

    def seed(self, seed: int) -> int:
        """The seed of the permutations of this source in a run with `seed`; that of source 0 is the run's own."""
        return (seed + self.number * _SEED_STEP) % 2**32


@dataclasses.dataclass(frozen=True)
class Reading:
    """From where a run reads its sources: a part of a checkpoint's data position.

    Attributes:
      first_example: the position of the run at which the cycles begin: 0, or where shares last changed.
      readers: the sources in their order; those of share 0 come last.
    """

    first_example: int
    readers: tuple[Reader, ...]

    @property
    def present(self) -> tuple[Reader, ...]:
        """The sources that the run reads."""
        return tuple(reader for reader in self.readers if reader.share)

    def to_json(self) -> dict[str, Any]:
        """The reading as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> 'Reading':
        """What `to_json` has returned."""
        return cls(value['first_example'], tuple(Reader(**reader) for reader in value['readers']))

    def consumed(self, examples: int) -> dict[int, int]:
        """Number of a source → rows that have been read of it before position `examples`, after `first_example`."""
        counts = Cycle([reader.share for reader in self.present]).count(examples - self.first_example)
        read = {reader.number: reader.consumed + int(n) for reader, n in zip(self.present, counts, strict=True)}
        return {reader.number: reader.consumed for reader in self.readers} | read

    def resumed(self, now: 'Reading', examples: int, note: Callable[[str], None]) -> 'Reading':
        """The reading with which a run goes on at position `examples`.

        If sources and shares are the same, it is this one, and the run goes on as if it had not been interrupted.
        Otherwise new cycles begin at `examples`, and each source goes on with the row at which it stopped, in the same
        permutation; a source that is new begins with its first row. One that is gone is remembered. A run of a single
        directory goes on in another one at the same position.

        Args:
          now: the reading of a new run with the present configuration.
          examples: the position of the run.
          note: receives a line for each change.

        Raises:
          ConfigError: if the rows of a source of a mixture have changed.
        """
        if len(self.readers) == len(now.readers) == 1:
            (before,), (after,) = self.readers, now.readers
            if before.fingerprint and before.fingerprint != after.fingerprint:
                note(f'the rows of {after.name} are others than those with which this run began')
            return Reading(self.first_example, (_going_on(after, before, before.consumed),))
        former = self._former(now)
        shares_now = [
            (before and before.number, after.share) for before, after in zip(former, now.readers, strict=True)
        ]
        is_same = shares_now == [(reader.number, reader.share) for reader in self.present]
        start = self.first_example if is_same else examples
        consumed, unused = self.consumed(start), itertools.count(1 + max(reader.number for reader in self.readers))
        present = [
            _going_on(after, before, consumed[before.number])
            if before
            else dataclasses.replace(after, number=next(unused))
            for before, after in zip(former, now.readers, strict=True)
        ]
        gone = [
            dataclasses.replace(reader, share=0, consumed=consumed[reader.number])
            for reader in self.readers
            if reader not in former
        ]
        new = Reading(start, (*present, *gone))
        for line in () if is_same else _changes(self, new):
            note(line)
        return new

    def _former(self, now: 'Reading') -> list[Reader | None]:
        """For each source of `now` the one of this reading that it is, or None if it is new.

        Sources are known by their rows, and by their names where checkpoints of earlier versions know no more.
        """
        pairs = list(itertools.product(self.readers, now.readers))
        same_rows = [pair for pair in pairs if pair[0].fingerprint == pair[1].fingerprint]
        same_name = [pair for pair in pairs if pair[0].name == pair[1].name]
        found: dict[int, Reader] = {}
        for before, after in (*(pair for pair in same_rows if pair in same_name), *same_rows, *same_name):
            if after.number in found or before in found.values():
                continue
            found[after.number] = before
            if before.fingerprint not in ('', after.fingerprint):
                raise ConfigError(
                    f'the rows of {after.name} in the mixture are others than those that this run has read: it cannot '
                    'go on where it stopped. Use the former directory, give the new one another name, or use another '
                    'workdir'
                )
        return [found.get(after.number) for after in now.readers]


def _going_on(after: Reader, before: Reader, consumed: int) -> Reader:
    """`after`, which goes on where `before`, the same source, has read `consumed` rows."""
    return dataclasses.replace(after, number=before.number, window=before.window, consumed=consumed)


def _changes(before: Reading, after: Reading) -> list[str]:
    """A line for each source whose share has changed."""

    def percent(reading: Reading) -> dict[int, float]:
        total = sum(reader.share for reader in reading.readers)
        return {reader.number: 100 * reader.share / total for reader in reading.readers}

    old, new = percent(before), percent(after)
    return [
        f'mixture: {reader.name} {old.get(reader.number, 0):.4g} % of the rows before, {new[reader.number]:.4g} % now; '
        f'{reader.consumed:,} of its rows have been read'
        for reader in after.readers
        if old.get(reader.number, 0) != new[reader.number]
    ]


class Mixture:
    """The `Order` of the rows of a run, in which the rows of its sources are numbered one after the other."""

    def __init__(self, reading: Reading, orders: Sequence[Order]):
        """`orders`: of each source that is present, in the numbers of its own rows."""
        self._first, self._readers, self._orders = reading.first_example, reading.present, orders
        self._cycle = Cycle([reader.share for reader in self._readers])
        self._consumed = np.array([reader.consumed for reader in self._readers], np.int64)
        self._sizes = np.array([reader.rows for reader in self._readers], np.int64)
        self._offsets = np.cumsum(self._sizes) - self._sizes

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64[n]: the rows at these positions of the run."""
        source_N, number_N = self._cycle.locate(np.asarray(positions) - self._first)
        rows_N = np.empty(len(source_N), np.int64)
        for source, order in enumerate(self._orders):
            mine = source_N == source
            if mine.any():
                rows_N[mine] = self._offsets[source] + order(self._consumed[source] + number_N[mine])
        return rows_N

    def spans(self, start: int, stop: int) -> np.ndarray:
        """int64[K, 2]: the spans of all sources."""
        from_S = self._consumed + self._cycle.count(start - self._first)
        to_S = self._consumed + self._cycle.count(stop - self._first)
        spans = [
            offset + order.spans(int(first), max(int(last), int(first) + 1))
            for offset, order, first, last in zip(self._offsets, self._orders, from_S, to_S, strict=True)
        ]
        return np.concatenate(spans)

    def epochs(self, examples: int) -> dict[str, float]:
        """Name → how often each source has been read through before position `examples`."""
        read_S = self._consumed + self._cycle.count(examples - self._first)
        return {reader.name: float(n / reader.rows) for reader, n in zip(self._readers, read_S, strict=True)}

    def describe(self, positions: np.ndarray) -> list[str]:
        """The rows at these positions, by their numbers in their sources; of several sources, with their names."""
        if positions[0] < self._first:  # this reading does not know the shares that there were before
            return ['read before the mixture changed']
        rows = self(positions)
        source_N = np.searchsorted(self._offsets, rows, side='right') - 1
        names = [f'{reader.name} ' if len(self._readers) > 1 else '' for reader in self._readers]
        return [f'{names[s]}{row - self._offsets[s]}' for s, row in zip(source_N.tolist(), rows.tolist(), strict=True)]
