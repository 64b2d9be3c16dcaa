"""The masking strategies, and the units that they choose from, by the names that configurations use.

Beside each function stands what must be known of it before it runs: configurations are checked, and shapes decided,
without JAX. So a function is named by its place, and imported where it is used.
"""

import dataclasses
import pkgutil
from collections.abc import Callable

PARTITIONS = ('random', 'contiguous', 'stratified')
SCHEDULES = ('one_step', 'successive', 'subset')
RATIO_SCHEDULES = ('constant', 'linear', 'cosine', 'staged', 'diffusion')


@dataclasses.dataclass(frozen=True)
class FullyExplored:
    """The switches of the strategy `fully_explored`.

    Attributes:
      segments: K; each mask holds 1/K of the eligible tokens.
      partition: 'random'; 'contiguous', with a random cyclic offset; or 'stratified', where each segment has one of
        every K neighbouring units. Against random masks of the same ratio, contiguous ones are harder and stratified
        ones easier to predict.
      schedule: 'one_step', all K masks of a text in one step, as K rows; 'successive', one mask at a time, that of
        segment (visit mod K), and a new partition every K visits; 'subset', some of the K masks in one step.
      views: J, the number of masks of 'subset'.
    """

    segments: int = 7
    partition: str = 'random'
    schedule: str = 'one_step'
    views: int = 2

    @property
    def num_views(self) -> int:
        """How many masks of each text a step has."""
        return {'one_step': self.segments, 'successive': 1, 'subset': self.views}[self.schedule]


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is chosen together.

    Attributes:
      function: from random numbers, tokens, eligible positions and tables to where units start (`masking/units.py`);
        the function itself, or its place as 'module:name'.
      longest: tokens; few units are longer.
      spread: E[ℓ²]/E[ℓ] of the tokens ℓ of a unit, generously: by this, choosing units instead of tokens spreads the
        count further.
      tables: attributes of `masking.tables.Tables` that the function reads.
    """

    function: str | Callable
    longest: int = 1
    spread: float = 1.0
    tables: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Which units are masked. The methods say what holds for most strategies; the others override them.

    Attributes:
      function: (random key, Candidates) → bool[B, T], or bool[B, K, T] for K masks of each row
        (`masking/selection.py`); the function itself, or its place as 'module:name'.
      tables: attributes of `masking.tables.Tables` that the function reads.
      max_ratio: the largest ratio of masked tokens that it can reach.
    """

    function: str | Callable
    tables: tuple[str, ...] = ()
    max_ratio: float = 1.0

    def num_views(self, options: FullyExplored) -> int:
        """K, how many masks of a row the function returns: rows of the MaskedBatch for each row of text."""
        return 1

    def ratio(self, ratio: float, options: FullyExplored) -> float:
        """The share of the eligible tokens in each mask, where `masking.ratio` is this."""
        return ratio

    def max_masked(self, unit: Unit, ratio: float, length: int, options: FullyExplored) -> int:
        """M, the static number of slots for the masked positions of a row of `length` tokens, at most at `ratio`."""
        return max_count(ratio, length)

    def may_overflow(self, unit: Unit) -> bool:
        """Whether `max_masked` bounds a count that is random: what finds no slot is not masked, and is counted."""
        return False

    def has_fixed_count(self, unit: Unit) -> bool:
        """Whether, at a constant ratio, at least ⌊ratio·N⌋ of N eligible tokens are masked: models may rely on it."""
        return unit.longest == 1

    def cycle(self, ratio: float, options: FullyExplored) -> int:
        """After how many visits of a row its masks start afresh; 1 where no visit depends on another."""
        return 1

    def problems(self, masking) -> list[str]:
        """What is wrong with the keys of `config.masking`, each with its cure."""
        return []


class Bernoulli(Strategy):
    """A random count. It gets four standard deviations more slots than it needs on average."""

    def max_masked(self, unit, ratio, length, options):
        slots = ratio * length + 4 * (ratio * (1 - ratio) * length * unit.spread) ** 0.5
        return max(1, min(length, int(slots) + 1))

    def may_overflow(self, unit):
        return True

    def has_fixed_count(self, unit):
        return False


class Weighted(Strategy):
    """Tokens of weight 0 are never masked: a row may have too few others."""

    def has_fixed_count(self, unit):
        return False


class LeastMasked(Strategy):
    """Visits of a row know of each other until every token has been masked about once."""

    def cycle(self, ratio, options):
        return max(1, round(1 / ratio)) if ratio else 1


class Complementary(Strategy):
    """Two disjoint masks."""

    def num_views(self, options):
        return 2


class FullyExploredStrategy(Strategy):
    """K disjoint masks, each of 1/K of the tokens."""

    def num_views(self, options):
        return options.num_views

    def ratio(self, ratio, options):
        return 1 / options.segments

    def max_masked(self, unit, ratio, length, options):
        """Slots for the largest segment: ⌈T/K⌉ for single tokens; for units more, and what finds none is counted."""
        share = -(-length // options.segments)
        if unit.longest == 1:
            return share
        # A segment starts and ends within half a unit of its place; strata add up the differences of their units.
        slack = 4 * (share * unit.spread) ** 0.5 if options.partition == 'stratified' else 0
        return min(length, share + max(unit.longest, int(slack) + 1))

    def may_overflow(self, unit):
        return unit.longest > 1

    def cycle(self, ratio, options):
        return options.segments if options.schedule == 'successive' else 1

    def problems(self, masking):
        explored, found = masking.fully_explored, []
        if explored.schedule == 'subset' and not 1 <= explored.views <= explored.segments:
            found.append(
                f'masking.fully_explored.views={explored.views} must lie within 1 … segments={explored.segments}'
            )
        if masking.ratio_schedule != 'constant':
            found.append(
                'fully_explored masks 1/segments of the tokens at every step: set masking.ratio_schedule=constant'
            )
        return found


UNITS = {
    'token': Unit('mlm_jax.masking.units:token'),
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
    """The most positions that a fixed count of ⌊ratio·N + U⌋, U < 1, can ask for in a row of `length` tokens."""
    return min(length, int(ratio * length) + 1) if ratio > 0 else 1
