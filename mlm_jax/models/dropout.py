"""Dropout that uses one random byte for each value."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p

from mlm_jax.parallel.mesh import BATCH_AXES, rows_are_local


def dropout(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """Sets values to 0 with probability `rate` and scales the others so that the expectation stays the same.

    Most of the cost of dropout is that of random bits, so four rows share each draw of 32 bits. Which values are
    dropped does not depend on how the array is sharded.

    Args:
      key: a typed PRNG key.
      rate: at least 0 and below 1; rounded to a multiple of 1/256, and to at most 255/256.
      x: float[B, …, rows, size].

    Returns:
      An array of the shape and dtype of `x`.
    """
    threshold = min(round(256 * rate), 255)
    *outer, rows, size = x.shape
    draws = -(-rows // 4)
    with jax.named_scope('random_bits'):
        bits = random_bits(key, (*outer, 1, draws, size))
    shifts = 8 * jnp.arange(4, dtype=jnp.uint32)[:, None, None]
    # Without the barrier, compilers may compute the random bits again for each of the four rows.
    byte = (jax.lax.optimization_barrier(bits) >> shifts) & 255
    keep = (byte >= threshold).reshape(*outer, 4 * draws, size)[..., :rows, :]
    return jnp.where(keep, x * (256 / (256 - threshold)), 0).astype(x.dtype)


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32[shape]: `jax.random.bits`; where rows are local to each device, its share of the bits of all rows.

    Args:
      key: a typed PRNG key of JAX's default kind, threefry.
      shape: the sizes; the first is the number of rows, on one device if rows are local.
    """
    if not rows_are_local():
        return jax.random.bits(key, shape, jnp.uint32)
    row_B = jax.lax.axis_index(BATCH_AXES).astype(jnp.uint32) * shape[0] + jnp.arange(shape[0], dtype=jnp.uint32)
    return bits_of_rows(key, row_B, shape[1:])


def bits_of_rows(key: jax.Array, row_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32[B, *shape]: the rows `row_B`, uint32[B], of `jax.random.bits(key, (N, *shape))`, for any N.

    Threefry hashes the index of each value in the whole array, a number of 64 bits; so does JAX.
    """
    size = math.prod(shape)
    high_B, low_B = _product(row_B, size)
    index = jnp.arange(size, dtype=jnp.uint32)
    low_BxI = low_B[:, None] + index
    high_BxI = high_B[:, None] + (low_BxI < index)  # the sum of two numbers has overflowed if it is less than either
    bits = threefry2x32_p.bind(*jax.random.key_data(key), high_BxI, low_BxI)
    return (bits[0] ^ bits[1]).reshape(-1, *shape)


def _product(x: jax.Array, y: int) -> tuple[jax.Array, jax.Array]:
    """The upper and the lower 32 bits of x · y, for uint32 x and y < 2³²: schoolbook, by halves of 16 bits."""
    x_high, x_low, y_high, y_low = x >> 16, x & 0xFFFF, jnp.uint32(y >> 16), jnp.uint32(y & 0xFFFF)
    middle = x_high * y_low + (x_low * y_low >> 16)
    other = x_low * y_high + (middle & 0xFFFF)
    return x_high * y_high + (middle >> 16) + (other >> 16), x * jnp.uint32(y)


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
