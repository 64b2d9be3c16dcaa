"""The prediction head: from encoder outputs to logits over the vocabulary."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlm_jax.models.activations import gelu
from mlm_jax.models.layers import EncoderConfig, dense, norm_layer
from mlm_jax.models.products import product
from mlm_jax.models.token_table import products_with_tokens, token_table


class MLMHead(nn.Module):
    """dense → GELU → norm → output matrix + bias (BERT's prediction head), or only the output matrix.

    The output matrix is the token embedding of the encoder, or an embedding of the head's own, `output_embedding`. A
    plain head with a tied matrix has no parameters.
    """

    config: EncoderConfig

    def setup(self) -> None:
        c = self.config
        if c.head == 'dense':
            self.dense = dense(c, c.width, None)
            self.norm = norm_layer(c, None)
            self.bias = self.param('bias', nn.initializers.zeros, (c.vocab_size,))
        if not c.tied_head:
            normal = nn.initializers.normal(c.init_stddev)
            self.output_embedding = nn.Embed(c.vocab_size, c.width, embedding_init=normal)

    def __call__(self, x_BxMxd: jax.Array, token_logits: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """f32[B, M, V]: the logits; `token_logits` multiplies by the encoder's token embedding."""
        return self.logits(self.hidden(x_BxMxd), token_logits)

    def hidden(self, x_BxMxd: jax.Array) -> jax.Array:
        """[B, M, d]: the vectors that are multiplied by the output matrix."""
        return self.norm(gelu(self.dense(x_BxMxd))) if self.config.head == 'dense' else x_BxMxd

    def logits(self, hidden_BxMxd: jax.Array, token_logits: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """f32[B, M, V]: the logits of the vectors that `hidden` returns."""
        if self.config.tied_head:
            logits_BxMxV = token_logits(hidden_BxMxd)
        else:
            logits_BxMxV = products_with_tokens(hidden_BxMxd, token_table(self.output_embedding))
        return logits_BxMxV + self.bias if self.config.head == 'dense' else logits_BxMxV

    def logits_of(
        self, targets_BxE: jax.Array, hidden_BxSxd: jax.Array, token_vectors: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """f32[B, E, S]: the logits of a few tokens at every vector that `hidden` returns.

        Args:
          targets_BxE: int32, the tokens.
          hidden_BxSxd: the vectors.
          token_vectors: tokens → rows of the encoder's token embedding.
        """
        if self.config.tied_head:
            vectors_BxExd = token_vectors(targets_BxE)
        else:
            vectors_BxExd = jnp.take(token_table(self.output_embedding), targets_BxE, axis=0)
        logit_BxExS = product('bed,bsd->bes', vectors_BxExd.astype(hidden_BxSxd.dtype), hidden_BxSxd, jnp.float32)
        return logit_BxExS + self.bias[targets_BxE][..., None] if self.config.head == 'dense' else logit_BxExS
