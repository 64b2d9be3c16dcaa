"""Dropout that spends a byte of randomness on each value."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def dropout(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """Sets values to 0 with probability `rate`, in steps of 1/256, and scales the others so that the mean stays.

    Four rows share one draw of 32 bits, as drawing is what dropout costs. A value's fate does not depend on how the
    array lies on devices.

    Args:
      key: typed PRNG key.
      rate: ≥ 0, below 1.
      x: float[…, rows, size].
    """
    threshold = min(round(256 * rate), 255)
    *outer, rows, size = x.shape
    draws = -(-rows // 4)
    with jax.named_scope('random_bits'):
        bits = jax.random.bits(key, (*outer, 1, draws, size), jnp.uint32)
    shifts = 8 * jnp.arange(4, dtype=jnp.uint32)[:, None, None]
    # Without the barrier, compilers may draw anew for each of the four rows.
    byte = (jax.lax.optimization_barrier(bits) >> shifts) & 255
    keep = (byte >= threshold).reshape(*outer, 4 * draws, size)[..., :rows, :]
    return jnp.where(keep, x * (256 / (256 - threshold)), 0).astype(x.dtype)


class Dropout(nn.Module):
    """`dropout` with keys from the rng stream 'dropout'; nothing where `deterministic`."""

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of the shape and dtype of `x`."""
        if self.deterministic or self.rate == 0:
            return x
        return dropout(self.make_rng('dropout'), self.rate, x)
