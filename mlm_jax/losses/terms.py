"""What an objective returns: sums and weights, divided once, over the global batch."""

import flax.struct
import jax


@flax.struct.dataclass
class LossTerms:
    """Sums over a part of the global batch; terms of parts add up leaf by leaf.

    Attributes:
      loss_sum: f32[], Σ weight · loss; what gradients are taken of.
      weight_sum: f32[], Σ weight. The loss is loss_sum / weight_sum of the whole batch, never a mean of means.
      metrics: name → (sum, weight), both f32[]; each is reported as sum / weight.
    """

    loss_sum: jax.Array
    weight_sum: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]
