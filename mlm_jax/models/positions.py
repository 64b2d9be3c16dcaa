"""Where a token stands: positions within documents, rotary angles, and MAE-LM's relative buckets."""

import jax
import jax.numpy as jnp
import numpy as np


def positions_in_documents(segments_BxT: jax.Array) -> jax.Array:
    """int32[B, T]: 0, 1, 2, … from the start of each document of a row."""
    index_T = jnp.arange(segments_BxT.shape[1], dtype=jnp.int32)
    starts_BxT = jnp.pad(segments_BxT[:, 1:] != segments_BxT[:, :-1], ((0, 0), (1, 0)))
    return index_T - jax.lax.cummax(jnp.where(starts_BxT, index_T, 0), axis=1)


def rotary_angles(positions_BxT: jax.Array, width: int, base: float = 10_000.0) -> jax.Array:
    """f32[B, T, width/2]: position · base^(−2i/width) (RoPE, arXiv 2104.09864)."""
    frequency = base ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    return positions_BxT.astype(jnp.float32)[..., None] * jnp.asarray(frequency, jnp.float32)


def rotate(x_BxTxHxD: jax.Array, angles_BxTxR: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i + D/2}) of each head by `angles_BxTxR`, R = D/2; angles in float32."""
    cos, sin = jnp.cos(angles_BxTxR)[:, :, None], jnp.sin(angles_BxTxR)[:, :, None]
    first, second = jnp.split(x_BxTxHxD.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxTxHxD.dtype)


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Buckets of the distances −(length − 1) … length − 1, as MAE-LM's released code draws them.

    Exact up to a quarter of the buckets, logarithmic beyond, one sign per half; the last of `num_buckets` stays unused.

    Returns:
      int32[2·length − 1]; entry d + length − 1 is the bucket of key position − query position = d.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = np.arange(1 - length, length)
    size = np.maximum(np.abs(distance), 1)
    logarithmic = exact + np.ceil(np.log(size / exact) / np.log((max_distance - 1) / exact) * (half - 1 - exact))
    bucket = np.where(size < exact, np.abs(distance), np.minimum(logarithmic, half - 1))
    return (np.sign(distance) * bucket + half - 1).astype(np.int32)
