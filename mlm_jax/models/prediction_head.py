"""The prediction head: from encoder outputs to logits over the vocabulary."""

from collections.abc import Callable

import flax.linen as nn
import jax

from mlm_jax.models.activations import gelu
from mlm_jax.models.layers import EncoderConfig, dense, layer_norm


class MLMHead(nn.Module):
    """dense → GELU → LayerNorm → tied token embedding + bias (BERT's prediction head)."""

    config: EncoderConfig

    def setup(self) -> None:
        c = self.config
        self.dense = dense(c, c.width, None)
        self.norm = layer_norm(c, None)
        self.bias = self.param('bias', nn.initializers.zeros, (c.vocab_size,))

    def __call__(self, x_BxMxd: jax.Array, token_logits: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """f32[B, M, V]: the logits; `token_logits` multiplies by the encoder's token embedding."""
        return token_logits(self.hidden(x_BxMxd)) + self.bias

    def hidden(self, x_BxMxd: jax.Array) -> jax.Array:
        """[B, M, d]: the vectors that are multiplied by the token embedding."""
        return self.norm(gelu(self.dense(x_BxMxd)))
