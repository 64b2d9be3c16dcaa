"""From encoder outputs to vocabulary logits."""

import flax.linen as nn

from mlm_jax.models.layers import EncoderConfig, dense, layer_norm


class MLMHead(nn.Module):
    """dense → GELU → LayerNorm → tied token embedding + bias (BERT's prediction head)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BxMxd, token_logits):
        """f32[B, M, V] logits; `token_logits` multiplies by the encoder's token embedding."""
        c = self.config
        x_BxMxd = nn.gelu(dense(c, c.width, 'dense')(x_BxMxd), approximate=False)
        x_BxMxd = layer_norm(c, 'norm')(x_BxMxd)
        return token_logits(x_BxMxd) + self.param('bias', nn.initializers.zeros, (c.vocab_size,))
