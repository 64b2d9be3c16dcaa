"""Masked language modelling (BERT, RoBERTa): predict the chosen tokens from the corrupted row."""

import flax.linen as nn
import jax

from mlm_jax.losses.cross_entropy import cross_entropy_terms, negative_log_likelihood
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch, selected_of
from mlm_jax.models.encoder import Encoder
from mlm_jax.models.heads import MLMHead
from mlm_jax.models.layers import EncoderConfig


class MLM(nn.Module):
    """An encoder with BERT's prediction head on the masked positions."""

    config: EncoderConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.head = MLMHead(self.config)

    def __call__(self, batch: MaskedBatch, deterministic: bool = True) -> LossTerms:
        """Cross-entropy of the original tokens at the masked positions; the metric `accuracy`."""
        return cross_entropy_terms(self.logits(batch, deterministic), batch.targets, batch.weights)

    def logits(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """f32[B, M, V] at the masked positions; of no meaning in unused slots."""
        x_BxMxd = self.encoder(batch.inputs, batch.segments, deterministic=deterministic, at_BxM=batch.positions)
        return self.head(x_BxMxd, self.encoder.token_logits)

    def log_likelihood(self, batch: MaskedBatch) -> jax.Array:
        """f32[B, M]: log-probabilities of the original tokens at the masked positions; no meaning in unused slots."""
        return -negative_log_likelihood(self.logits(batch), batch.targets)

    def encode_masked(self, batch: MaskedBatch, deterministic: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the encoder makes of its pretraining input, for analyses.

        Returns:
          float[B, S, d], the output; int32[B, S], the segment of each slot, 0 where unused; bool[B, S], which slots
          are masked positions. Here S = T.
        """
        x_BxTxd = self.encoder(batch.inputs, batch.segments, deterministic=deterministic)
        return x_BxTxd, batch.segments, selected_of(batch.positions, batch.tokens.shape[1])

    def encode(
        self,
        tokens_BxT: jax.Array,
        segments_BxT: jax.Array,
        deterministic: bool = True,
        at_BxM: jax.Array | None = None,
    ) -> jax.Array:
        """float[B, T, d]: the representation of unmasked rows, for downstream tasks; `at_BxM`, if any: [B, M, d]."""
        return self.encoder(tokens_BxT, segments_BxT, deterministic=deterministic, at_BxM=at_BxM)
