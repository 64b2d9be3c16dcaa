"""What changes from step to step: the ratio of masked tokens, and how often a row has been visited."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RatioSchedule:
    """The ratio as a function of the step, of type float32: a step with another ratio is not compiled again.

    Attributes:
      name: 'constant'; 'linear' or 'cosine', from `first` to `last` (arXiv 2305.15096); 'staged', `first` and then
        `last`; 'diffusion', for each row t ~ U(`last`, `first`) with the loss weight 1/t (MDLM, arXiv 2406.07524).
      first: the ratio at the start of the run; of 'constant', always.
      last: the ratio at its end; of 'diffusion', the smallest.
      start_step: where 'linear' and 'cosine' leave `first`, and where 'staged' jumps.
      stop_step: where `last` is reached.
    """

    name: str = 'constant'
    first: float = 0.15
    last: float = 0.15
    start_step: int = 0
    stop_step: int = 1

    @property
    def largest(self) -> float:
        """The ratio that shapes must allow for."""
        return self.first if self.name == 'constant' else max(self.first, self.last)

    def __call__(self, key: jax.Array, step: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
        """The ratios and the loss weights of the rows of a batch, float32[B] each."""
        one_B = jnp.ones(num_rows, jnp.float32)
        if self.name == 'diffusion':
            # One stratum of the range for each row, in turn (MDLM): less variance than independent draws.
            place_B = (jnp.arange(num_rows) + jax.random.uniform(key, (num_rows,))) / num_rows
            ratio_B = self.last + (self.first - self.last) * place_B
            return ratio_B, self.weights(ratio_B)
        return one_B * self.at(step), one_B

    def weights(self, ratio_B: jax.Array) -> jax.Array:
        """float32[B]: the loss weights of rows with these ratios."""
        return 1 / ratio_B if self.name == 'diffusion' else jnp.ones_like(ratio_B)

    def at(self, step: jax.Array) -> jax.Array:
        """float32, of the shape of `step`: the ratio of all but 'diffusion'."""
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
    """The ratios of rows as functions of the visit alone: so the mask of a visit can be drawn again at a later one.

    Rows come in another order in each epoch, and nothing tells a later visit where in its epoch an earlier one was. So
    a visit has the ratio of the middle of its epoch: a moving ratio moves from epoch to epoch.

    Attributes:
      first_visit: int32[B], the number of the visit with which the cycle of each row began.
      key: key[B], of each row and its cycle; of 'diffusion', which draws a ratio for each visit.
      schedule: the ratios.
      batch_size: B.
      num_rows: N, of an epoch.
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
        # The mean over the rows of the epoch, or of the part of it that the run still has.
        return self.schedule.at((start_B + jnp.maximum(start_B, stop_B)) / 2 - 0.5)


def visits(step: jax.Array, batch_size: int, num_rows: int) -> jax.Array:
    """int32[B]: how often each row of a batch has been visited before.

    Every row comes once in each epoch, and an epoch may end inside a batch (`data/rows.py`): row j of batch i is in
    epoch (i·B + j) div N. The product can exceed 32 bits, so it is divided as it is formed, bit by bit of B.

    Args:
      step: int32[], i.
      batch_size: B.
      num_rows: N, below 2³⁰; 0 where it is not known, and every visit is the first.
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
