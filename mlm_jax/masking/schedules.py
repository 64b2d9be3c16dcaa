"""What changes from step to step: the ratio of masked tokens, and how often a row has been visited."""

import dataclasses

import jax
import jax.numpy as jnp

RATIO_SCHEDULES = ('constant', 'linear', 'cosine', 'staged', 'diffusion')


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
            return ratio_B, 1 / ratio_B
        if self.name == 'constant':
            return one_B * self.first, one_B
        progress = (jnp.asarray(step, jnp.float32) - self.start_step) / max(1, self.stop_step - self.start_step)
        share = {
            'linear': lambda: jnp.clip(progress, 0, 1),
            'cosine': lambda: (1 - jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2,
            'staged': lambda: (progress >= 0).astype(jnp.float32),
        }[self.name]()
        return one_B * (self.first + (self.last - self.first) * share), one_B


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
