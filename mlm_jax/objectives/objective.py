"""The base class of objectives: a Linen module with an encoder for downstream tasks and parts for pretraining."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from mlm_jax.losses.cross_entropy import negative_log_likelihood
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch, selected_of
from mlm_jax.masking.vocabulary import Vocabulary
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.spec import PREDICTION

NATS = math.log(2)  # the number of nats in a bit

Distributions = tuple[dict[str, tuple[jax.Array, jax.Array]], jax.Array]


class Objective(nn.Module):
    """The base class of all objectives.

    A subclass creates `self.encoder`, an `Encoder`, in `setup`, defines `__call__` and `logits`, and overrides those of
    the other methods that do not hold for it.

    Attributes:
      config: the configuration of the encoder.
    """

    config: EncoderConfig

    @classmethod
    def make(cls, config: EncoderConfig, options: Any, vocabulary: Vocabulary) -> 'Objective':
        """The module that a configuration describes.

        Args:
          config: the configuration of the encoder.
          options: an instance of the class `Spec.options` of the objective, which becomes the attribute `options`; None
            if the objective has no options.
          vocabulary: the special ids and the number of ids.
        """
        del vocabulary
        attributes = {} if options is None else {'options': options}
        return cls(config, **attributes)

    def __call__(self, batch: MaskedBatch, deterministic: bool = True) -> LossTerms:
        """The loss of a batch and its metrics, each as a sum and a weight."""
        raise NotImplementedError

    def logits(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """f32[B, M, V]: logits for the original tokens at the masked positions; undefined in unused slots."""
        raise NotImplementedError

    def log_likelihood(self, batch: MaskedBatch) -> jax.Array:
        """f32[B, M]: log-probabilities of the original tokens at the masked positions; undefined in unused slots."""
        return -negative_log_likelihood(self.logits(batch), batch.targets)

    def encode_masked(self, batch: MaskedBatch, deterministic: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The output of the encoder for its pretraining input, for analyses.

        Returns:
          float[B, S, d], the output; int32[B, S], the segment of each slot, 0 in unused slots; bool[B, S], whether a
          slot is a masked position. S is the length of the encoder's input: T if the encoder reads the corrupted row.
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
        """float[B, T, d]: representations of unmasked rows for downstream tasks; [B, M, d] at `at_BxM` if given."""
        return self.encoder(tokens_BxT, segments_BxT, deterministic=deterministic, at_BxM=at_BxM)

    # ---- For analyses ------------------------------------------------------------------------------------------------

    def distributions(self, batch: MaskedBatch) -> Distributions:
        """Entropy and negative log-likelihood of each prediction, in bits, over the whole vocabulary.

        Args:
          batch: rows with M masked positions.

        Returns:
          A dict of name → (entropy, NLL), f32[B, N] each, with the names in `Spec.distributions`; and bool[B, N], which
          of the N predictions are for masked positions.
        """
        logits_BxMxV = self.logits(batch).astype(jnp.float32)
        nll_BxM = negative_log_likelihood(logits_BxMxV, batch.targets)
        entropy_BxM = entr(jax.nn.softmax(logits_BxMxV)).sum(-1)
        return {PREDICTION: (entropy_BxM / NATS, nll_BxM / NATS)}, batch.positions < batch.tokens.shape[1]

    def at_any_ratio(self) -> 'Objective':
        """The same model, with the same parameters, but with static shapes for rows with any share of masked tokens."""
        return self

    def num_logits(self, length: int, max_masked: int) -> int:
        """The number of positions of a row of `length` tokens for which logits are computed."""
        del length
        return max_masked

    def refuses_single_tokens(self) -> str:
        """Why a row with one masked token has no likelihood, in a sentence that says what to do; '' if it has one."""
        return ''

    def refuses_alignment(self) -> str:
        """Why the model has no alignment of states with targets, in a sentence that says what to do; '' if it has."""
        return 'the objective of this model has no states to align: give a model that was trained with objective=exlm'
