"""ExLM's transitions: the probability that state u follows state v."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlm_jax.models.layers import EncoderConfig, dense
from mlm_jax.models.products import product

FORBIDDEN = -1e30  # finite, so that the softmax of a state without later states is not NaN


class Transitions(nn.Module):
    """Gated multi-head transitions between states (Zheng et al., arXiv 2501.13397; released code).

    z_v = [h_v; π(slot of v)];  a_c(v → u) = log softmax over later u of q_{v,c} · κ_{u,c} / √(d/C);
    links(v → u) = log Σ_c softmax(g(z_v))_c exp a_c(v → u). C = 1 gives the single softmax of the paper's formula.

    Attributes:
      config: the configuration of the encoder.
      num_heads: C, which must divide the width.
      num_positions: the number of rows of the embedding π, at least the length of expanded rows.
    """

    config: EncoderConfig
    num_heads: int
    num_positions: int

    @nn.compact
    def __call__(self, state_BxSxd: jax.Array, slot_BxS: jax.Array, allowed_BxSxS: jax.Array) -> jax.Array:
        """Log-probabilities of the transitions.

        Args:
          state_BxSxd: the encoder's outputs at the states.
          slot_BxS: int32, the index of each state among the slots of its alignment.
          allowed_BxSxS: bool, whether state u (last axis) may follow state v.

        Returns:
          f32[B, S, S], −inf where not allowed.
        """
        c = self.config
        heads = (self.num_heads, c.width // self.num_heads)
        normal = nn.initializers.normal(c.init_stddev)
        position_embedding = nn.Embed(self.num_positions, c.width, embedding_init=normal, name='position_embedding')
        position_BxSxd = position_embedding(jnp.minimum(slot_BxS, self.num_positions - 1))
        z_BxSx2d = jnp.concatenate([state_BxSxd, position_BxSxd.astype(state_BxSxd.dtype)], axis=-1)
        q_BxCxSxD, k_BxCxSxD = (dense(c, heads, name)(z_BxSx2d).swapaxes(1, 2) for name in ('query', 'key'))
        score_BxCxSxS = product('bcvd,bcud->bcvu', q_BxCxSxD * heads[1] ** -0.5, k_BxCxSxD, jnp.float32)
        log_prob_BxCxSxS = jax.nn.log_softmax(jnp.where(allowed_BxSxS[:, None], score_BxCxSxS, FORBIDDEN), axis=-1)
        if self.num_heads == 1:
            links_BxSxS = log_prob_BxCxSxS[:, 0]
        else:
            gate_BxSxC = jax.nn.log_softmax(dense(c, self.num_heads, 'gate')(z_BxSx2d).astype(jnp.float32), axis=-1)
            links_BxSxS = jax.nn.logsumexp(log_prob_BxCxSxS + jnp.moveaxis(gate_BxSxC, -1, 1)[..., None], axis=1)
        return jnp.where(allowed_BxSxS, links_BxSxS, -jnp.inf)
