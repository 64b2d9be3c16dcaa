"""The positions of tokens within documents, rotary angles, and the buckets of relative biases."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def positions_in_documents(segments_BxT: jax.Array) -> jax.Array:
    """int32[B, T]: 0, 1, 2, … from the start of each document of a row."""
    index_T = jnp.arange(segments_BxT.shape[1], dtype=jnp.int32)
    starts_BxT = jnp.pad(segments_BxT[:, 1:] != segments_BxT[:, :-1], ((0, 0), (1, 0)))
    return index_T - jax.lax.cummax(jnp.where(starts_BxT, index_T, 0), axis=1)


def rotary_turns(positions: Sequence[jax.Array], width: int, base: float = 10_000.0) -> jax.Array:
    """f32[B, T, 2, A, width / 2A]: cosine and sine of position · base^(−2j / (width / A)) for each of A coordinates.

    RoPE, arXiv 2104.09864.

    Args:
      positions: A arrays int32[B, T]. Each coordinate rotates its share of a head; ExLM has two, for a half each.
      width: the width of a head, a multiple of 2A.
      base: the base of the geometric series of wavelengths.
    """
    share = width // len(positions)
    frequency = base ** -(np.arange(0, share, 2, dtype=np.float64) / share)
    angles_BxTxAxR = jnp.stack(positions, axis=-1).astype(jnp.float32)[..., None] * jnp.asarray(frequency, jnp.float32)
    turns_BxTx2xAxR = jnp.stack([jnp.cos(angles_BxTxAxR), jnp.sin(angles_BxTxAxR)], axis=2)
    # Every layer reads these for every head; without the barrier, compilers would compute them again at each use.
    return jax.lax.optimization_barrier(turns_BxTx2xAxR)


def rotate(x_BxTxHxD: jax.Array, turns_BxTx2xAxR: jax.Array) -> jax.Array:
    """Rotates the pairs (x_j, x_{j+R}) in each of the A shares of each head, R = D / 2A, in float32."""
    axes, num_angles = turns_BxTx2xAxR.shape[3:]
    cos, sin = (turn[..., None, :] for turn in jnp.split(turns_BxTx2xAxR, 2, axis=2))  # [B, T, 1, A, 1, R]
    pairs_BxTxHxAx2xR = x_BxTxHxD.astype(jnp.float32).reshape(*x_BxTxHxD.shape[:3], axes, 2, num_angles)
    first, second = jnp.split(pairs_BxTxHxAx2xR, 2, axis=-2)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return rotated.reshape(x_BxTxHxD.shape).astype(x_BxTxHxD.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False)
def rotate_by_either(
    x_BxTxHxD: jax.Array, turns_BxTx2xAxR: jax.Array, others_BxTx2xAxR: jax.Array, is_other: jax.Array
) -> jax.Array:
    """`rotate`, by `turns_BxTx2xAxR`, or by `others_BxTx2xAxR` if `is_other`, bool[].

    The backward pass chooses again: otherwise, a scan over layers would keep what each layer has chosen.
    """
    return rotate(x_BxTxHxD, jnp.where(is_other, others_BxTx2xAxR, turns_BxTx2xAxR))


def relative_buckets(length: int, num_buckets: int, max_distance: int, bucketing: str = 'mae_lm') -> np.ndarray:
    """The buckets of the distances −(length − 1) … length − 1.

    Distances below a quarter of the number of buckets have buckets of their own; larger ones share logarithmic buckets.
    Each sign has one half of the buckets. In MAE-LM, negative distances come first in descending size, and the last of
    `num_buckets` stays unused; in T5, the first half is for distances down from 0, and 0 of the second stays unused.

    Args:
      length: the largest number of tokens.
      num_buckets: a multiple of 4.
      max_distance: where the last logarithmic bucket begins (T5: ends).
      bucketing: 'mae_lm', as in MAE-LM's released code; or 't5', as for both directions in T5 (arXiv 1910.10683) and in
        MPNet.

    Returns:
      int32[2·length − 1]; entry d + length − 1 is the bucket of key position − query position = d.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = np.arange(1 - length, length)
    size = np.maximum(np.abs(distance), 1)
    if bucketing == 't5':
        steps = np.log(size / exact) / np.log(max_distance / exact) * (half - exact)
        logarithmic = exact + np.floor(steps + 1e-9)  # where a bucket begins at a whole number, this belongs to it
        bucket = np.where(size < exact, np.abs(distance), np.minimum(logarithmic, half - 1))
        return (np.where(distance > 0, half, 0) + bucket).astype(np.int32)
    logarithmic = exact + np.ceil(np.log(size / exact) / np.log((max_distance - 1) / exact) * (half - 1 - exact))
    bucket = np.where(size < exact, np.abs(distance), np.minimum(logarithmic, half - 1))
    return (np.sign(distance) * bucket + half - 1).astype(np.int32)
