"""What changes from step to step: the ratio of masked tokens, and how often a row has been visited."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mlm_jax.masking.registry import largest_ratio


@dataclasses.dataclass(frozen=True)
class RatioSchedule:
    """The ratio as a function of the step. It is a float32 array, so that a new ratio needs no new compilation.

    Attributes:
      name: 'constant'; 'linear' or 'cosine', which decay from `first` to `last` (arXiv 2305.15096); 'staged', which
        jumps from `first` to `last`; 'diffusion', which draws a ratio t ~ U(`last`, `first`) for each row and gives the
        row the loss weight 1/t (MDLM, arXiv 2406.07524).
      first: the ratio at the start of the run; for 'constant', at all steps; for 'diffusion', the largest.
      last: the ratio at the end of the run; for 'diffusion', the smallest; 'constant' ignores it.
      start_step: the step at which 'linear' and 'cosine' leave `first`, and at which 'staged' jumps.
      stop_step: the step at which 'linear' and 'cosine' reach `last`.
    """

    name: str = 'constant'
    first: float = 0.15
    last: float = 0.15
    start_step: int = 0
    stop_step: int = 1

    @property
    def largest(self) -> float:
        """The largest ratio of the run, for which static shapes must have room."""
        return largest_ratio(self.name, self.first, self.last)

    def __call__(self, key: jax.Array, step: ArrayLike, num_rows: int) -> tuple[jax.Array, jax.Array]:
        """float32[B] each: the ratios and the loss weights of the B = `num_rows` rows of a batch."""
        one_B = jnp.ones(num_rows, jnp.float32)
        if self.name == 'diffusion':
            # Each row draws from its own stratum of the range (MDLM): less variance than independent draws.
            place_B = (jnp.arange(num_rows) + jax.random.uniform(key, (num_rows,))) / num_rows
            ratio_B = self.last + (self.first - self.last) * place_B
            return ratio_B, self.weights(ratio_B)
        return one_B * self.at(step), one_B

    def frozen(self, step: int) -> 'RatioSchedule':
        """The schedule that draws at all steps what this one draws at one."""
        if self.name == 'diffusion':
            return self
        ratio = float(self.at(step))
        return RatioSchedule('constant', ratio, ratio)

    def weights(self, ratio_B: jax.Array) -> jax.Array:
        """float32[B]: the loss weights of rows with the ratios `ratio_B`."""
        return 1 / ratio_B if self.name == 'diffusion' else jnp.ones_like(ratio_B)

    def at(self, step: ArrayLike) -> jax.Array:
        """float32 with the shape of `step`: the ratio at a step; not for 'diffusion', where it is random."""
        if self.name == 'constant':
            return jnp.full(jnp.shape(step), self.first, jnp.float32)
        progress = (jnp.asarray(step, jnp.float32) - self.start_step) / max(1, self.stop_step - self.start_step)
        share = {
            'linear': lambda: jnp.clip(progress, 0, 1),
            'cosine': lambda: (1 - jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2,
            'staged': lambda: (progress >= 0).astype(jnp.float32),
        }[self.name]()
        return self.first + (self.last - self.first) * share


@flax.struct.dataclass
class VisitRatios:
    """The ratio of a row as a function of the visit alone, so that later visits can draw the mask of this one again.

    Each epoch has its own order of rows, so a later visit cannot know at which step of its epoch an earlier visit took
    place. A visit therefore has the mean ratio of its epoch: a changing ratio changes from epoch to epoch.

    Attributes:
      first_visit: int32[B], the number of the visit with which the current cycle of each row began.
      key: key[B], a key for each row and cycle, from which 'diffusion' draws a ratio for each visit.
      schedule: the ratio as a function of the step.
      batch_size: B.
      num_rows: N, the number of rows of an epoch.
    """

    first_visit: jax.Array
    key: jax.Array
    schedule: RatioSchedule = flax.struct.field(pytree_node=False)
    batch_size: int = flax.struct.field(pytree_node=False)
    num_rows: int = flax.struct.field(pytree_node=False)

    def __call__(self, turn_B: jax.Array) -> jax.Array:
        """float32[B]: the ratio at visit `first_visit` + `turn_B`."""
        if self.schedule.name == 'diffusion':
            key_B = jax.vmap(jax.random.fold_in)(self.key, turn_B)
            place_B = jax.vmap(jax.random.uniform)(key_B)
            return self.schedule.last + (self.schedule.first - self.schedule.last) * place_B
        epoch = self.num_rows / self.batch_size
        start_B = epoch * (self.first_visit + turn_B)
        stop_B = jnp.clip(start_B + epoch, max=self.schedule.stop_step)
        # The ratio at the middle of the epoch, or of the part of the epoch that lies within the run.
        return self.schedule.at((start_B + jnp.maximum(start_B, stop_B)) / 2 - 0.5)


def visits(step: ArrayLike, batch_size: int, num_rows: int) -> jax.Array:
    """int32[B]: how many times each row of a batch has been visited before.

    Every row comes once in each epoch, and an epoch may end inside a batch (`data/rows.py`): row j of batch i belongs
    to epoch ⌊(i·B + j) / N⌋. The product can exceed 32 bits, so multiplication and division are interleaved, one bit of
    B at a time.

    Args:
      step: int32[], the number i of the batch.
      batch_size: B.
      num_rows: N, below 2³⁰; 0 if it is unknown, and every visit then counts as the first.
    """
    if not num_rows:
        return jnp.zeros(batch_size, jnp.int32)
    step = jnp.asarray(step, jnp.int32)
    whole, step = step // num_rows * batch_size, step % num_rows
    quotient, rest = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    for bit in f'{batch_size:b}':
        rest = 2 * rest
        quotient, rest = 2 * quotient + rest // num_rows, rest % num_rows
        if bit == '1':
            rest += step
            quotient, rest = quotient + rest // num_rows, rest % num_rows
    return whole + quotient + (rest + jnp.arange(batch_size, dtype=jnp.int32)) // num_rows
