"""What an objective returns: sums and weights, which are divided only once, over the global batch."""

import flax.struct
import jax


@flax.struct.dataclass
class LossTerms:
    """Sums over a part of the global batch; the LossTerms of several parts are added leaf by leaf.

    Attributes:
      loss_sum: f32[], Σ weight · loss; gradients are taken of this sum.
      weight_sum: f32[], Σ weight. The loss is loss_sum / weight_sum of the whole batch, never a mean of means.
      metrics: name → (sum, weight), both f32[]; each is reported as sum / weight.
    """

    loss_sum: jax.Array
    weight_sum: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]
