"""What a strategy chooses from: the units of text of each row, and how many of their tokens it must choose."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mlm_jax.masking.ratio_schedules import VisitRatios

# Passes of `take` over a row; each skips the units that are longer than the count still open. The sixth pass finds
# hardly any unit that fits.
ROUNDS = 6


@flax.struct.dataclass
class Candidates:
    """The units of each row. A unit is a run of eligible positions that are either all chosen or all left.

    All arrays have a value for each row; those without, such as tables, are in `settings`.

    Attributes:
      tokens: int32[B, T].
      eligible: bool[B, T], where masking is allowed: neither on padding nor on special tokens.
      starts: bool[B, T], the first position of each unit; a unit extends up to the next start or to the next position
        that is not eligible.
      ratio: float32[B], the share of the eligible tokens of a row to choose.
      row_key: key[B], a random key of each row that stays the same for a cycle of visits (`Masking.cycle`).
      turn: int32[B], the number of earlier visits of the row in this cycle.
      ratios: the ratio at each turn of the cycle; None if it is `ratio` at every turn.
      settings: the `Masking`, with its tables and the settings that a strategy has for itself; static. The ratio is
        that above, which may differ between rows and steps.
      single: whether every unit is a single token; static.
    """

    tokens: jax.Array
    eligible: jax.Array
    starts: jax.Array
    ratio: jax.Array
    row_key: jax.Array
    turn: jax.Array
    ratios: VisitRatios | None = None
    settings: Any = flax.struct.field(pytree_node=False, default=None)
    single: bool = flax.struct.field(pytree_node=False, default=False)

    def ratio_at(self, turn_B: jax.Array) -> jax.Array:
        """float32[B]: the ratio at a turn of the cycle, be it an earlier turn or the present one."""
        return self.ratio if self.ratios is None else self.ratios(turn_B)

    @property
    def start_index(self) -> jax.Array:
        """int32[B, T]: where the unit of each eligible position starts."""
        index_T = jnp.arange(self.starts.shape[1], dtype=jnp.int32)
        return jax.lax.cummax(jnp.where(self.starts, index_T, 0), axis=1)

    @property
    def sizes(self) -> jax.Array:
        """int32[B, T]: the number of tokens of the unit that starts at a position; 0 where no unit starts."""
        index_T = jnp.arange(self.starts.shape[1], dtype=jnp.int32)
        return jnp.where(self.starts, next_boundary(self.starts, self.eligible) - index_T, 0)

    def spread(self, x_BxT: jax.Array) -> jax.Array:
        """[B, T]: the value at the start of each unit, copied to all positions of the unit; 0 where not eligible."""
        if not self.single:
            x_BxT = jnp.take_along_axis(x_BxT, self.start_index, axis=1)
        return jnp.where(self.eligible, x_BxT, jnp.zeros((), x_BxT.dtype))

    def mean(self, x_BxT: jax.Array) -> jax.Array:
        """float32[B, T]: at the start of each unit, the mean over its positions; undefined elsewhere."""
        if self.single:
            return x_BxT
        total_BxT = jnp.cumsum(jnp.where(self.eligible, x_BxT, 0.0), axis=1)
        total_BxT = jnp.pad(total_BxT, ((0, 0), (1, 0)))
        index_T = jnp.arange(x_BxT.shape[1], dtype=jnp.int32)
        end_BxT = jnp.minimum(index_T + self.sizes, x_BxT.shape[1])
        return (jnp.take_along_axis(total_BxT, end_BxT, axis=1) - total_BxT[:, :-1]) / jnp.maximum(self.sizes, 1)


def next_boundary(starts_BxT: jax.Array, eligible_BxT: jax.Array) -> jax.Array:
    """int32[B, T]: the first later position that is a start or is not eligible; T if there is none."""
    length = starts_BxT.shape[1]
    at_BxT = jnp.where(starts_BxT | ~eligible_BxT, jnp.arange(length, dtype=jnp.int32), length)
    return jnp.pad(jax.lax.cummin(at_BxT, axis=1, reverse=True)[:, 1:], ((0, 0), (0, 1)), constant_values=length)


def fixed_count(key: jax.Array, eligible_BxT: jax.Array, ratio: float | jax.Array) -> jax.Array:
    """int32[B]: how many of the N eligible positions of each row to choose: ⌊ratio·N + U⌋ with U ~ Uniform[0, 1).

    Stochastic rounding keeps the expectation at ratio·N, with a smaller variance than an independent draw for each
    position.
    """
    return rounded_count(jax.random.uniform(key, eligible_BxT.shape[:1]), eligible_BxT, ratio)


def rounded_count(noise_B: jax.Array, eligible_BxT: jax.Array, ratio: float | jax.Array) -> jax.Array:
    """int32[B]: `fixed_count` with `noise_B` as the numbers U."""
    num_eligible_B = eligible_BxT.sum(1)
    count_B = jnp.floor(ratio * num_eligible_B + noise_B).astype(jnp.int32)
    return jnp.minimum(count_B, num_eligible_B)  # a rounding error of the sum could lift it past N


def ranks(score_BxT: jax.Array, among_BxT: jax.Array) -> jax.Array:
    """int32[B, T]: the rank of each position when its row is sorted by ascending score; `among_BxT` come first.

    Unlike thresholds on the score, ranks cannot tie: equal scores are ordered by position.
    """
    return jnp.argsort(jnp.argsort(jnp.where(among_BxT, score_BxT, jnp.inf), axis=1), axis=1)


def take(
    score_BxT: jax.Array, candidates: Candidates, count_B: jax.Array, among_BxT: jax.Array | None = None
) -> jax.Array:
    """Chooses units in ascending order of their scores until the count is met; units that do not fit are skipped.

    Args:
      score_BxT: float32[B, T], the score of the unit that starts at a position.
      candidates: the units.
      count_B: int32[B], the number of tokens to choose.
      among_BxT: bool[B, T], the starts of the units that may be chosen; None allows all.

    Returns:
      bool[B, T], the chosen positions: at most `count_B` in a row, and exactly `count_B` if every unit is one token and
      enough units may be chosen.
    """
    among_BxT = candidates.starts if among_BxT is None else candidates.starts & among_BxT
    if candidates.single:
        return (ranks(score_BxT, among_BxT) < count_B[:, None]) & among_BxT
    order_BxT = jnp.argsort(jnp.where(among_BxT, score_BxT, jnp.inf), axis=1)
    size_BxT = jnp.take_along_axis(jnp.where(among_BxT, candidates.sizes, 0), order_BxT, axis=1)

    def pass_once(_, taken_and_left):
        # A unit longer than the count that is left will not fit later either. Of the other units, this pass takes all
        # that come before the first one that does not fit.
        taken_BxT, left_B = taken_and_left
        open_BxT = ~taken_BxT & (size_BxT > 0) & (size_BxT <= left_B[:, None])
        total_BxT = jnp.cumsum(jnp.where(open_BxT, size_BxT, 0), axis=1)
        now_BxT = open_BxT & (total_BxT <= left_B[:, None])
        return taken_BxT | now_BxT, left_B - jnp.where(now_BxT, size_BxT, 0).sum(1)

    taken_BxT, _ = jax.lax.fori_loop(0, ROUNDS, pass_once, (jnp.zeros_like(among_BxT), count_B))
    return candidates.spread(jnp.take_along_axis(taken_BxT, jnp.argsort(order_BxT, axis=1), axis=1))


def limit(selected_BxT: jax.Array, candidates: Candidates, max_masked: int) -> tuple[jax.Array, jax.Array]:
    """Keeps the first units of each row that fit into `max_masked` slots.

    Returns:
      bool[B, T], the positions kept; int32[B], how many selected positions were dropped.
    """
    total_BxT = jnp.cumsum(selected_BxT, axis=1, dtype=jnp.int32)
    if not candidates.single:  # a unit fits if its last token does
        index_T = jnp.arange(selected_BxT.shape[1], dtype=jnp.int32)
        last_BxT = jnp.where(candidates.starts, index_T + candidates.sizes - 1, 0)
        total_BxT = jnp.take_along_axis(total_BxT, candidates.spread(last_BxT), axis=1)
    kept_BxT = selected_BxT & (total_BxT <= max_masked)
    return kept_BxT, (selected_BxT & ~kept_BxT).sum(1, dtype=jnp.int32)


def row_uniform(key_B: jax.Array, length: int) -> jax.Array:
    """float32[B, T]: uniform in [0, 1), each row drawn from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(key_B)
