"""ESM-2's token dropout: [MASK] has no embedding, and the other tokens make up for the sum that this lacks."""

import jax
import jax.numpy as jnp

# The share of [MASK] in the training of ESM (0.8 of 15 %), for which embeddings are not rescaled.
TRAINING_SHARE = 0.8 * 0.15


def rescaled(x_BxTxd: jax.Array, tokens_BxT: jax.Array, segments_BxT: jax.Array, zeroed_token: int) -> jax.Array:
    """Embeddings of tokens, zero for `zeroed_token`, times (1 − 0.12) / (1 − its share in the document).

    As in `EsmModel` of transformers, whose rows are documents. Without masks, all are scaled by 0.88.

    Args:
      x_BxTxd: f32[B, T, d].
      tokens_BxT: int32[B, T].
      segments_BxT: int32[B, T], the document of each token.
      zeroed_token: the id of [MASK].
    """
    is_zeroed_BxT = tokens_BxT == zeroed_token

    def in_document(values_T, segments_T):
        return jax.ops.segment_sum(values_T, segments_T, num_segments=len(segments_T) + 1)[segments_T]

    length_BxT = jax.vmap(in_document)(jnp.ones(tokens_BxT.shape, jnp.float32), segments_BxT)
    left_BxT = jax.vmap(in_document)((~is_zeroed_BxT).astype(jnp.float32), segments_BxT) / length_BxT
    scale_BxT = jnp.where(is_zeroed_BxT, 0.0, (1 - TRAINING_SHARE) / jnp.maximum(left_BxT, 1 / tokens_BxT.shape[1]))
    return x_BxTxd * scale_BxT[..., None]
