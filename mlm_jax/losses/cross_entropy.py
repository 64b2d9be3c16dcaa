"""Cross-entropy of the masked positions."""

import jax
import jax.numpy as jnp

from mlm_jax.losses.terms import LossTerms


def negative_log_likelihood(logits_BxMxV: jax.Array, targets_BxM: jax.Array) -> jax.Array:
    """f32[B, M]: −log softmax(logits)[target] in nats, computed in float32."""
    logits_BxMxV = logits_BxMxV.astype(jnp.float32)
    target_BxM = jnp.take_along_axis(logits_BxMxV, targets_BxM[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BxMxV, axis=-1) - target_BxM


def is_most_likely(logits_BxMxV: jax.Array, targets_BxM: jax.Array) -> jax.Array:
    """bool[B, M]: whether the target has the largest logit, without a tie. Much faster than an argmax on CPUs."""
    target_BxMx1 = jnp.take_along_axis(logits_BxMxV, targets_BxM[..., None], axis=-1)
    return jnp.sum(logits_BxMxV >= target_BxMx1, axis=-1) == 1


def cross_entropy_terms(logits_BxMxV: jax.Array, targets_BxM: jax.Array, weights_BxM: jax.Array) -> LossTerms:
    """Weighted cross-entropy and accuracy.

    Args:
      logits_BxMxV: float[B, M, V].
      targets_BxM: int32[B, M]; unused slots may hold any id.
      weights_BxM: f32[B, M], 0 in unused slots.

    Returns:
      LossTerms with the metrics `accuracy`, the share of the positions whose target is the most likely token, and
      `masked_nll`, the unweighted mean of the loss, by which objectives and strategies can be compared.
    """
    nll_BxM = negative_log_likelihood(logits_BxMxV, targets_BxM)
    used_BxM = (weights_BxM > 0).astype(jnp.float32)
    correct_BxM = is_most_likely(logits_BxMxV, targets_BxM) * used_BxM
    return LossTerms(
        loss_sum=jnp.sum(nll_BxM * weights_BxM),
        weight_sum=jnp.sum(weights_BxM),
        metrics={
            'accuracy': (jnp.sum(correct_BxM), jnp.sum(used_BxM)),
            'masked_nll': (jnp.sum(nll_BxM * used_BxM), jnp.sum(used_BxM)),
        },
    )
