"""Cycles of a mixture: which source each position of a run reads, as a closed form.

The shares of the sources are whole numbers c₁ … c_k, whose sum is the length C of a *cycle*. A table says which source
each of the C positions of a cycle reads; every cycle is the same. The table is made by Tijdeman's rule (The chairman
assignment problem, 1980), so that among any first p positions, every source has been read p·cᵢ/C times up to less than
one row. Position p of a run is therefore row number ⌊p/C⌋·cᵢ + rᵢ of its source i, where rᵢ is how often that source
comes before place p mod C of the cycle: nothing is sampled, no state is kept, and nothing walks through earlier
positions.
"""

import fractions
import math
from collections.abc import Sequence

import numpy as np

from mlm_jax.files.errors import ConfigError

LONGEST_CYCLE = 10_000


def by_size(num_rows: Sequence[int], temperature: float) -> list[fractions.Fraction]:
    """The weights nᵢ^(1/τ) of sources with `num_rows` rows: τ = 1 is by size, and the larger τ, the more even."""
    largest = max(num_rows)
    return [fractions.Fraction((n / largest) ** (1 / temperature)) for n in num_rows]


def shares(weights: Sequence[fractions.Fraction], names: Sequence[str]) -> tuple[int, ...]:
    """Whole numbers in the ratio of the weights: exact if their sum is at most `LONGEST_CYCLE`, else rounded to it.

    Raises:
      ConfigError: if a share is below half of 1/`LONGEST_CYCLE`; `names` are for the message.
    """
    total = sum(weights)
    exact = [weight / total for weight in weights]
    length = min(math.lcm(*(share.denominator for share in exact)), LONGEST_CYCLE)
    found = [int(share * length) for share in exact]
    # The largest remainders are rounded up, of equal ones the first.
    by_remainder = sorted(range(len(exact)), key=lambda i: found[i] - exact[i] * length)
    for i in by_remainder[: length - sum(found)]:
        found[i] += 1
    if 0 in found:
        i = found.index(0)
        raise ConfigError(
            f'{names[i]} has a share of {float(exact[i]):.2g} of the mixture, too small to be kept: give it a weight '
            f'of 1/{LONGEST_CYCLE:,} of all weights, or a larger data.mixture_temperature; or leave it out'
        )
    return tuple(found)


class Cycle:
    """The sources of the positions of one cycle, and of all that follow."""

    def __init__(self, shares: Sequence[int]):
        """A cycle in which source i comes `shares[i]` times."""
        self.shares = np.array(shares, np.int64)
        self.length = int(self.shares.sum())
        self._source_C = _assign(self.shares)
        order = np.argsort(self._source_C, kind='stable')
        first_of_source = np.cumsum(self.shares) - self.shares
        self._number_C = np.empty(self.length, np.int64)
        self._number_C[order] = np.arange(self.length) - np.repeat(first_of_source, self.shares)
        self._places = np.split(order, np.cumsum(self.shares)[:-1])

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64[n] each: the source of each position, and how often that source came before."""
        cycle, place = np.divmod(np.asarray(positions, np.int64), self.length)
        source = self._source_C[place]
        return source, cycle * self.shares[source] + self._number_C[place]

    def count(self, stop: int) -> np.ndarray:
        """int64[k]: how often each source comes among the first `stop` positions."""
        cycles, rest = divmod(stop, self.length)
        return cycles * self.shares + np.bincount(self._source_C[:rest], minlength=len(self.shares))

    def position_of(self, source: int, number: int) -> int:
        """The position at which a source comes for the time `number`, counted from 0."""
        cycle, rest = divmod(number, int(self.shares[source]))
        return cycle * self.length + int(self._places[source][rest])


def _assign(shares: np.ndarray) -> np.ndarray:
    """int64[C]: the source of each position, by Tijdeman's rule: |count − p·c/C| ≤ 1 − 1/(2k − 2) < 1."""
    length, k = int(shares.sum()), max(2, len(shares))
    owed = np.zeros(len(shares), np.int64)  # C · (what a source should have had − what it had)
    source_C = np.empty(length, np.int64)
    for p in range(length):
        owed += shares
        # Among the sources that may come, the one that must come soonest lest it be a row behind.
        soonest = np.where((2 * k - 2) * owed >= length, ((2 * k - 3) * length - (2 * k - 2) * owed) / shares, np.inf)
        source_C[p] = chosen = int(np.argmin(soonest))
        owed[chosen] -= length
    return source_C
