"""Dropout that uses one random byte for each value."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def dropout(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """Sets values to 0 with probability `rate` and scales the others so that the expectation stays the same.

    Most of the cost of dropout is that of random bits, so four rows share each draw of 32 bits. Which values are
    dropped does not depend on how the array is sharded.

    Args:
      key: a typed PRNG key.
      rate: at least 0 and below 1; rounded to a multiple of 1/256.
      x: float[…, rows, size].

    Returns:
      An array of the shape and dtype of `x`.
    """
    threshold = min(round(256 * rate), 255)
    *outer, rows, size = x.shape
    draws = -(-rows // 4)
    with jax.named_scope('random_bits'):
        bits = jax.random.bits(key, (*outer, 1, draws, size), jnp.uint32)
    shifts = 8 * jnp.arange(4, dtype=jnp.uint32)[:, None, None]
    # Without the barrier, compilers may compute the random bits again for each of the four rows.
    byte = (jax.lax.optimization_barrier(bits) >> shifts) & 255
    keep = (byte >= threshold).reshape(*outer, 4 * draws, size)[..., :rows, :]
    return jnp.where(keep, x * (256 / (256 - threshold)), 0).astype(x.dtype)


class Dropout(nn.Module):
    """`dropout` with keys from the rng stream 'dropout'; the identity if `deterministic`."""

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array of the shape and dtype of `x`."""
        if self.deterministic or self.rate == 0:
            return x
        return dropout(self.make_rng('dropout'), self.rate, x)
