"""Pooling: one vector for a row from the vectors of its tokens."""

import jax
import jax.numpy as jnp

POOLINGS = ('cls', 'mean')  # the vector of [CLS], the first token; the mean over all tokens except padding


def mean(x_BxTxd: jax.Array, segments_BxT: jax.Array) -> jax.Array:
    """[B, d]: the mean over the tokens of each row, including special tokens; 0 for a row of padding.

    Args:
      x_BxTxd: [B, T, d], the vectors of the tokens.
      segments_BxT: int32[B, T], 0 for padding.
    """
    real_BxTx1 = (segments_BxT > 0)[..., None]
    return jnp.where(real_BxTx1, x_BxTxd, 0.0).sum(1) / jnp.maximum(real_BxTx1.sum(1), 1)
