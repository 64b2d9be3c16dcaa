"""An exponential moving average of the parameters, which a run keeps beside them (the key `ema.decay`)."""

from typing import Any

import jax
import jax.numpy as jnp


def updated(average: Any, params: Any, applied: jax.Array, step: jax.Array, decay: float) -> Any:
    """The average after an update: a ← a + (1 − d)(p − a), with d = min(decay, (1 + t) / (10 + t)).

    At the start of a run, when t updates are few, d is small, so that the average soon forgets the random parameters
    that it begins with; a constant d near 1 would keep a share of decayᵗ of them. This is how TensorFlow's
    `tf.train.ExponentialMovingAverage` computes d where it knows the number of updates.

    Args:
      average: pytree of float32, the average before the update.
      params: the same pytree, the parameters after the update.
      applied: bool[], whether there was an update; without one, the average stays as it is.
      step: int32[], t, the number of updates before this one; those that were skipped count.
      decay: of the key `ema.decay`, above 0 and below 1.
    """
    share = jnp.maximum(1.0 - decay, 9.0 / (10.0 + step))  # 1 − d; in float32, d itself would lose digits of it
    return jax.tree.map(lambda a, p: jnp.where(applied, a + share * (p - a), a), average, params)
