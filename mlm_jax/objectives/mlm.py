"""Masked language modeling (BERT, RoBERTa): predict the chosen tokens from the corrupted row."""

import jax

from mlm_jax.losses.cross_entropy import cross_entropy_terms
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.encoder import Encoder
from mlm_jax.models.prediction_head import MLMHead
from mlm_jax.objectives.objective import Objective


class MLM(Objective):
    """An encoder with BERT's prediction head on the masked positions."""

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.head = MLMHead(self.config)

    def __call__(self, batch: MaskedBatch, deterministic: bool = True) -> LossTerms:
        """Cross-entropy of the original tokens at the masked positions, with the metrics of `cross_entropy_terms`."""
        return cross_entropy_terms(self.logits(batch, deterministic), batch.targets, batch.weights)

    def logits(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """f32[B, M, V]: the logits at the masked positions; undefined in unused slots."""
        x_BxMxd = self.encoder(batch.inputs, batch.segments, deterministic=deterministic, at_BxM=batch.positions)
        return self.head(x_BxMxd, self.encoder.token_logits)
