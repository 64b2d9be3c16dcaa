"""From rows of tokens to a MaskedBatch, on the device, inside jit."""

import dataclasses

import jax
import jax.numpy as jnp

from mlm_jax.masking import corruption, selection
from mlm_jax.masking.batch import MaskedBatch, positions_of
from mlm_jax.masking.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Masking:
    """A masking strategy with its settings: a pure function `(key, tokens, segments) → MaskedBatch`.

    Draws depend on the key and on the shape of the global batch alone: the masks have the same bits on any mesh, any
    number of processes and any split into microbatches.

    Attributes:
      vocabulary: the ids.
      strategy: a name in `selection.STRATEGIES`.
      ratio: share of the eligible tokens of a row that are predicted.
      mask_fraction: share of those that become [MASK].
      random_fraction: share of those that become a random ordinary token.
    """

    vocabulary: Vocabulary
    strategy: str = 'uniform'
    ratio: float = 0.15
    mask_fraction: float = 1.0
    random_fraction: float = 0.0

    def max_masked(self, length: int) -> int:
        """M, the static number of slots for masked positions in a row of `length` tokens."""
        return selection.max_count(self.ratio, length)

    def __call__(self, key: jax.Array, tokens_BxT: jax.Array, segments_BxT: jax.Array) -> MaskedBatch:
        """Masks the global batch.

        Args:
          key: a random key.
          tokens_BxT: int32[B, T].
          segments_BxT: int32[B, T], 0 on padding.

        Returns:
          A MaskedBatch with M = `max_masked(T)`.
        """
        select_key, corrupt_key = jax.random.split(key)
        eligible_BxT = selection.eligible_positions(tokens_BxT, segments_BxT, self.vocabulary)
        selected_BxT = selection.STRATEGIES[self.strategy](select_key, eligible_BxT, self.ratio)
        length = tokens_BxT.shape[1]
        positions_BxM = positions_of(selected_BxT, self.max_masked(length))
        return MaskedBatch(
            tokens=tokens_BxT,
            inputs=corruption.corrupt(
                corrupt_key, tokens_BxT, selected_BxT, self.vocabulary, self.mask_fraction, self.random_fraction
            ),
            positions=positions_BxM,
            weights=(positions_BxM < length).astype(jnp.float32),
            segments=segments_BxT,
        )
