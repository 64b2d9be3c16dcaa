"""From encoder outputs to vocabulary logits."""

import flax.linen as nn

from mlm_jax.models.activations import gelu
from mlm_jax.models.layers import EncoderConfig, dense, layer_norm


class MLMHead(nn.Module):
    """dense → GELU → LayerNorm → tied token embedding + bias (BERT's prediction head)."""

    config: EncoderConfig

    def setup(self):
        c = self.config
        self.dense = dense(c, c.width, None)
        self.norm = layer_norm(c, None)
        self.bias = self.param('bias', nn.initializers.zeros, (c.vocab_size,))

    def __call__(self, x_BxMxd, token_logits):
        """f32[B, M, V] logits; `token_logits` multiplies by the encoder's token embedding."""
        return token_logits(self.hidden(x_BxMxd)) + self.bias

    def hidden(self, x_BxMxd):
        """[B, M, d]: what meets the token embedding."""
        return self.norm(gelu(self.dense(x_BxMxd)))
