"""One vector of a row from those of its tokens."""

import jax
import jax.numpy as jnp

POOLINGS = ('cls', 'mean')  # that of [CLS], the first token; or the mean of all tokens but padding


def mean(x_BxTxd: jax.Array, segments_BxT: jax.Array) -> jax.Array:
    """[B, d]: the mean over the tokens of each row, specials included; 0 of a row of padding."""
    real_BxTx1 = (segments_BxT > 0)[..., None]
    return jnp.where(real_BxTx1, x_BxTxd, 0.0).sum(1) / jnp.maximum(real_BxTx1.sum(1), 1)
