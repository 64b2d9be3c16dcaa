"""The losses of fine-tuning, one for each kind of task.

Each is a function (outputs, targets, segments, weights) → (losses, their weights), two arrays of one shape; the
losses are already multiplied by the weights. A target that is not known is NaN: its weight and its loss are 0.
"""

import jax
import jax.numpy as jnp
import optax


def _cross_entropy(
    outputs_BxC: jax.Array, targets_Bx1: jax.Array, segments_BxT: jax.Array, weights_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    known_B = ~jnp.isnan(targets_Bx1[:, 0])
    class_B = jnp.where(known_B, targets_Bx1[:, 0], 0).astype(jnp.int32)
    weight_B = known_B * weights_C[class_B]
    return optax.softmax_cross_entropy_with_integer_labels(outputs_BxC, class_B) * weight_B, weight_B


def _masked_binary_cross_entropy(
    outputs_BxC: jax.Array, targets_BxC: jax.Array, segments_BxT: jax.Array, weights_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    known_BxC = ~jnp.isnan(targets_BxC)
    target_BxC = jnp.where(known_BxC, targets_BxC, 0)
    weight_BxC = known_BxC * jnp.where(target_BxC > 0, weights_C, 1.0)
    return optax.sigmoid_binary_cross_entropy(outputs_BxC, target_BxC) * weight_BxC, weight_BxC


def _squared_error(
    outputs_BxC: jax.Array, targets_BxC: jax.Array, segments_BxT: jax.Array, weights_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    known_BxC = ~jnp.isnan(targets_BxC)
    return jnp.where(known_BxC, outputs_BxC - jnp.where(known_BxC, targets_BxC, 0), 0.0) ** 2, known_BxC


def _span(
    outputs_BxTx2: jax.Array, targets_Bx2: jax.Array, segments_BxT: jax.Array, weights_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    known_Bx2 = ~jnp.isnan(targets_Bx2)
    place_Bx2 = jnp.where(known_Bx2, targets_Bx2, 0).astype(jnp.int32)
    is_text_BxT = segments_BxT > 0
    # A row of padding alone keeps its logits: the softmax of nothing but −∞ is NaN, and so is its gradient.
    may_be_BxT = is_text_BxT | ~is_text_BxT.any(axis=1, keepdims=True)
    logits_Bx2xT = jnp.moveaxis(jnp.where(may_be_BxT[..., None], outputs_BxTx2, -jnp.inf), -1, 1)
    losses_Bx2 = optax.softmax_cross_entropy_with_integer_labels(logits_Bx2xT, place_Bx2)
    return jnp.where(known_Bx2, losses_Bx2, 0.0), known_Bx2


LOSSES = {
    'classification': _cross_entropy,
    'multilabel': _masked_binary_cross_entropy,
    'regression': _squared_error,
    'span': _span,
}
