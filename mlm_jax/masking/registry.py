"""The masking strategies, and the units that they choose from, by the names that configurations use.

Each entry names its function and holds what must be known about it before it runs: configurations are checked, and
shapes decided, without JAX. This is why an entry gives the function as 'module:name', and it is imported where it is
used.
"""

import dataclasses
import pkgutil
from collections.abc import Callable
from typing import Any

PARTITIONS = ('random', 'contiguous', 'stratified')
SCHEDULES = ('one_step', 'successive', 'subset')
RATIO_SCHEDULES = ('constant', 'linear', 'cosine', 'staged', 'diffusion')


@dataclasses.dataclass(frozen=True)
class FullyExplored:
    """The settings of the strategy `fully_explored`.

    Attributes:
      segments: K; each mask holds 1/K of the eligible tokens.
      partition: 'random'; 'contiguous', with a random cyclic offset; or 'stratified', where each segment has one of
        every K neighboring units. Compared with random masks of the same ratio, contiguous masks are harder to predict
        and stratified masks are easier.
      schedule: 'one_step' uses all K masks of a text in one step, as K rows; 'successive' uses one mask at each visit,
        that of segment (visit mod K), and makes a new partition every K visits; 'subset' uses J of the K masks in one
        step.
      views: J, the number of masks of 'subset'.
    """

    segments: int = 7
    partition: str = 'random'
    schedule: str = 'one_step'
    views: int = 2


@dataclasses.dataclass(frozen=True)
class Unit:
    """A kind of unit: a run of tokens that are chosen together.

    Attributes:
      function: (random numbers, tokens, eligible positions, tables) → where units start (`masking/units.py`); the
        function itself, or its name as 'module:name'.
      longest: a length in tokens that few units exceed; with 1, each token is a unit.
      spread: an upper estimate of E[ℓ²]/E[ℓ], where ℓ is the number of tokens of a unit: the factor by which the
        variance of the count of chosen tokens grows when units are chosen instead of tokens.
      tables: attributes of `masking.tables.Tables` that the function reads.
    """

    function: str | Callable
    longest: int
    spread: float = 1.0
    tables: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A strategy: which units are masked. The methods hold for most strategies; subclasses override those that differ.

    The argument `settings` of the methods has the keys of `config.masking` as attributes, also those that a strategy
    has for itself: it is that part of a configuration, or a `Masking`.

    Attributes:
      function: (random key, Candidates) → bool[B, T], or bool[B, K, T] for K masks of each row
        (`masking/selection.py`); the function itself, or its name as 'module:name'.
      tables: attributes of `masking.tables.Tables` that the function reads, from `candidates.settings.tables`.
      max_ratio: the largest ratio of masked tokens that it can reach.
    """

    function: str | Callable
    tables: tuple[str, ...] = ()
    max_ratio: float = 1.0

    def num_views(self, settings: Any) -> int:
        """K, the number of masks that the function returns for each row; each becomes a row of the MaskedBatch."""
        return 1

    def ratio(self, ratio: float, settings: Any) -> float:
        """The share of the eligible tokens in each mask, given the value of `masking.ratio`."""
        return ratio

    def max_masked(self, ratio: float, length: int, settings: Any) -> int:
        """M, the static number of slots for masked positions in a row of `length` tokens; `ratio` is the largest."""
        return max_count(ratio, length)

    def may_overflow(self, settings: Any) -> bool:
        """Whether more tokens can be chosen than `max_masked` slots hold; tokens without a slot stay unmasked."""
        return False

    def has_fixed_count(self, settings: Any) -> bool:
        """Whether, at a constant ratio, at least ⌊ratio·N⌋ of N eligible tokens are masked, as some objectives need."""
        return UNITS[settings.unit].longest == 1

    def cycle(self, ratio: float, settings: Any) -> int:
        """The number of visits of a row that depend on each other; 1 if the masks of all visits are independent.

        `ratio` is the largest of the run.
        """
        return 1

    def by_visit(self, settings: Any) -> bool:
        """Whether the mask of a row follows from the number of its visit, and not from the random key of the step."""
        return False

    def problems(self, settings: Any) -> list[str]:
        """The conflicts between the settings; each message says what to do."""
        return []


class Bernoulli(Strategy):
    """The count is random. There are slots for four standard deviations above its mean."""

    def max_masked(self, ratio: float, length: int, settings: Any) -> int:
        slots = ratio * length + 4 * (ratio * (1 - ratio) * length * UNITS[settings.unit].spread) ** 0.5
        return max(1, min(length, int(slots) + 1))

    def may_overflow(self, settings: Any) -> bool:
        return True

    def has_fixed_count(self, settings: Any) -> bool:
        return False


class Weighted(Strategy):
    """Tokens of weight 0 are never masked, so a row may have too few tokens to reach the ratio."""

    def has_fixed_count(self, settings: Any) -> bool:
        return False


class LeastMasked(Strategy):
    """Visits of a row depend on each other until every token has been masked about once."""

    def cycle(self, ratio: float, settings: Any) -> int:
        return max(1, round(1 / ratio)) if ratio else 1

    def by_visit(self, settings: Any) -> bool:
        return True


class Complementary(Strategy):
    """Two disjoint masks."""

    def num_views(self, settings: Any) -> int:
        return 2


class FullyExploredStrategy(Strategy):
    """K disjoint masks, each with 1/K of the tokens."""

    def num_views(self, settings: Any) -> int:
        explored = settings.fully_explored
        return {'one_step': explored.segments, 'successive': 1, 'subset': explored.views}[explored.schedule]

    def ratio(self, ratio: float, settings: Any) -> float:
        return 1 / settings.fully_explored.segments

    def max_masked(self, ratio: float, length: int, settings: Any) -> int:
        """Slots for the largest segment: ⌈T/K⌉ for single tokens; more for longer units, which may still overflow."""
        explored, unit = settings.fully_explored, UNITS[settings.unit]
        share = -(-length // explored.segments)
        if unit.longest == 1:
            return share
        # A segment starts and ends within half a unit of the exact cut; strata add up differences in unit length.
        slack = 4 * (share * unit.spread) ** 0.5 if explored.partition == 'stratified' else 0
        return min(length, share + max(unit.longest, int(slack) + 1))

    def may_overflow(self, settings: Any) -> bool:
        return UNITS[settings.unit].longest > 1

    def cycle(self, ratio: float, settings: Any) -> int:
        return settings.fully_explored.segments if self.by_visit(settings) else 1

    def by_visit(self, settings: Any) -> bool:
        return settings.fully_explored.schedule == 'successive'

    def problems(self, settings: Any) -> list[str]:
        explored, found = settings.fully_explored, []
        if explored.schedule == 'subset' and not 1 <= explored.views <= explored.segments:
            found.append(
                f'masking.fully_explored.views={explored.views} must lie between 1 and segments={explored.segments}'
            )
        if settings.ratio_schedule != 'constant':
            found.append(
                'masking.strategy=fully_explored masks 1/segments of the tokens at every step, so the ratio cannot '
                'change: set masking.ratio_schedule=constant'
            )
        return found


UNITS = {
    'token': Unit('mlm_jax.masking.units:token', 1),
    'word': Unit('mlm_jax.masking.units:word', 8, 2.5, ('word_starts', 'word_marks')),
    'span': Unit('mlm_jax.masking.units:span', 24, 9.0, ('word_starts', 'word_marks')),
    'ngram': Unit('mlm_jax.masking.units:ngram', 3, 2.34),
    'pmi': Unit('mlm_jax.masking.units:pmi', 10, 4.0, ('word_starts', 'word_marks', 'collocations')),
}

STRATEGIES = {
    'uniform': Strategy('mlm_jax.masking.selection:uniform'),
    'bernoulli': Bernoulli('mlm_jax.masking.selection:bernoulli'),
    'weighted': Weighted('mlm_jax.masking.selection:weighted', tables=('token_weights',)),
    'least_masked': LeastMasked('mlm_jax.masking.selection:least_masked'),
    'complementary': Complementary('mlm_jax.masking.selection:complementary', max_ratio=0.5),
    'fully_explored': FullyExploredStrategy('mlm_jax.masking.fully_explored:fully_explored'),
}


def function_of(entry: Strategy | Unit) -> Callable:
    """The function of a strategy or a unit."""
    return pkgutil.resolve_name(entry.function) if isinstance(entry.function, str) else entry.function


def max_count(ratio: float, length: int) -> int:
    """The largest value of the fixed count ⌊ratio·N + U⌋, U < 1, in a row of `length` tokens; at least 1."""
    return min(length, int(ratio * length) + 1) if ratio > 0 else 1


def max_predicted(predicted_fraction: float, max_corrupted: int) -> int:
    """The static number of slots for predictions, where at most `max_corrupted` tokens of a row are corrupted."""
    return max_count(predicted_fraction, max_corrupted) if predicted_fraction < 1 else max_corrupted


def largest_ratio(schedule: str, first: float, last: float) -> float:
    """The largest ratio of masked tokens in a run, by the name of its schedule, and its first and last ratio."""
    return first if schedule == 'constant' else max(first, last)
