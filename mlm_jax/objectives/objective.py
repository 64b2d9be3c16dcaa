"""What an objective is: a Linen module with an encoder, which downstream tasks keep, and parts for pretraining only."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from mlm_jax.losses.cross_entropy import negative_log_likelihood
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch, selected_of
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.spec import PREDICTION

NATS = math.log(2)  # in a bit

Distributions = tuple[dict[str, tuple[jax.Array, jax.Array]], jax.Array]


class Objective(nn.Module):
    """The base of all objectives. `setup` of a subclass makes `self.encoder`, an `Encoder`; the subclass defines
    `__call__` and `logits`, and overrides what is different of it among the rest.

    Attributes:
      config: of the encoder.
    """

    config: EncoderConfig

    @classmethod
    def make(cls, config: EncoderConfig, options, vocabulary) -> 'Objective':
        """The module that a configuration describes.

        Args:
          config: of the encoder.
          options: an instance of the `options` of its spec; None where that has none.
          vocabulary: the ids.
        """
        del vocabulary
        return cls(config) if options is None else cls(config, options)

    def __call__(self, batch: MaskedBatch, deterministic: bool = True) -> LossTerms:
        """The loss of a batch, as a sum and a weight; with metrics, each as a sum and a weight too."""
        raise NotImplementedError

    def logits(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """f32[B, M, V]: of the original tokens at the masked positions; undefined in unused slots."""
        raise NotImplementedError

    def log_likelihood(self, batch: MaskedBatch) -> jax.Array:
        """f32[B, M]: log-probabilities of the original tokens at the masked positions; undefined in unused slots."""
        return -negative_log_likelihood(self.logits(batch), batch.targets)

    def encode_masked(self, batch: MaskedBatch, deterministic: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the encoder makes of its pretraining input, for analyses.

        Returns:
          float[B, S, d], the output; int32[B, S], the segment of each slot, 0 where unused; bool[B, S], which slots
          are masked positions. For a model that reads the whole row as it is corrupted, S = T.
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

    # ---- For analyses ------------------------------------------------------------------------------------------------

    def distributions(self, batch: MaskedBatch) -> Distributions:
        """Entropy and negative log-likelihood of each prediction, in bits, over the whole vocabulary.

        Args:
          batch: with M masked positions.

        Returns:
          Name → (entropy, NLL), f32[B, N] each: those in `distributions` of the spec. And bool[B, N], which of them
          are of masked positions.
        """
        logits_BxMxV = self.logits(batch).astype(jnp.float32)
        nll_BxM = negative_log_likelihood(logits_BxMxV, batch.targets)
        entropy_BxM = entr(jax.nn.softmax(logits_BxMxV)).sum(-1)
        return {PREDICTION: (entropy_BxM / NATS, nll_BxM / NATS)}, batch.positions < batch.tokens.shape[1]

    def at_any_ratio(self) -> 'Objective':
        """The same function of the same parameters, for rows of which any share may be masked."""
        return self

    def num_logits(self, length: int, max_masked: int) -> int:
        """For how many positions of a row of `length` tokens there are logits."""
        del length
        return max_masked

    def refuses_single_tokens(self) -> str:
        """Why a row with one masked token has no likelihood, as a sentence with the cure; '' where it has one."""
        return ''

    def refuses_alignment(self) -> str:
        """Why there is no alignment of states with targets to show, as a sentence with the cure; '' where there is."""
        return 'the objective of this model has no states to align: the model must be one of objective=exlm'
