"""From the encoder to what reads texts: one vector for each token, and pooling, one for a row.

A model may read each token several times (repeated MLM); the vector of a token is then the mean over its copies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

POOLINGS = ('cls', 'mean')  # the vector of [CLS], the first token; the mean over all tokens except padding


def token_vectors(
    encode: Callable[..., jax.Array],
    tokens_BxT: jax.Array,
    segments_BxT: jax.Array,
    *,
    repeats: int = 1,
    first_only: bool = False,
) -> jax.Array:
    """The vectors of the tokens of texts: float32[B, T, d], or float32[B, 1, d], those of the first ones.

    Args:
      encode: (tokens, segments, at_BxM=…) → vectors, as the `encode` of an objective.
      tokens_BxT: int32[B, T], each token once.
      segments_BxT: int32[B, T], 0 for padding.
      repeats: how often the encoder reads each token, side by side: `masking.repeats` of its training.
      first_only: only the vectors of the first tokens, which costs less in the last layer.
    """
    B = len(tokens_BxT)
    if repeats > 1:
        tokens_BxT, segments_BxT = (jnp.repeat(x, repeats, axis=1) for x in (tokens_BxT, segments_BxT))
    at_BxM = jnp.broadcast_to(jnp.arange(repeats, dtype=jnp.int32), (B, repeats)) if first_only else None
    x_BxTxd = encode(tokens_BxT, segments_BxT, at_BxM=at_BxM).astype(jnp.float32)
    return x_BxTxd if repeats == 1 else x_BxTxd.reshape(B, -1, repeats, x_BxTxd.shape[-1]).mean(2)


def row_vectors(
    encode: Callable[..., jax.Array],
    tokens_BxT: jax.Array,
    segments_BxT: jax.Array,
    pooling: str,
    *,
    repeats: int = 1,
) -> jax.Array:
    """float32[B, d]: the pooled vectors of texts, by one of `POOLINGS`; other arguments as for `token_vectors`."""
    if pooling == 'cls':
        return token_vectors(encode, tokens_BxT, segments_BxT, repeats=repeats, first_only=True)[:, 0]
    return mean(token_vectors(encode, tokens_BxT, segments_BxT, repeats=repeats), segments_BxT)


def mean(x_BxTxd: jax.Array, segments_BxT: jax.Array) -> jax.Array:
    """[B, d]: the mean over the tokens of each row, including special tokens; 0 for a row of padding.

    Args:
      x_BxTxd: [B, T, d], the vectors of the tokens.
      segments_BxT: int32[B, T], 0 for padding.
    """
    real_BxTx1 = (segments_BxT > 0)[..., None]
    return jnp.where(real_BxTx1, x_BxTxd, 0.0).sum(1) / jnp.maximum(real_BxTx1.sum(1), 1)
