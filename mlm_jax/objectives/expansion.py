"""ExLM's expanded rows: each masked token, and each anchor of an alignment, becomes k states."""

import flax.struct
import jax
import jax.numpy as jnp

from mlm_jax.masking.batch import MaskedBatch, gather_positions, positions_of, selected_of
from mlm_jax.models.positions import positions_in_documents
from mlm_jax.objectives.exlm_spec import row_slots


@flax.struct.dataclass
class ExpandedRows:
    """Rows in which some tokens are repeated k times, side by side. All shapes are static.

    Attributes:
      tokens: int32[B, L], the ids that the encoder reads.
      segments: int32[B, L], the document of each slot; 0 in unused slots.
      positions: int32[B, L], the position within the document before expansion, which the copies of a token share.
      copies: int32[B, L], 1 … k for the copies of an expanded token, 0 for other tokens.
      index: int32[B, L], the index of the slot's token in the row; T in unused slots.
      first_slot: int32[B, T], the slot of each token; for an expanded token, the slot of its first copy.
      expanded: int32[B, E], the expanded positions of the row in ascending order; T in unused entries.
      alignment: int32[B, E], the alignment to which each expanded token belongs, 1, 2, …; 0 in unused entries.
      state_slot: int32[B, k·E], the slots of the states in ascending order; L in unused entries.
      state_place: int32[B, k·E], the same, counted from the slot of the first token of the alignment.
    """

    tokens: jax.Array
    segments: jax.Array
    positions: jax.Array
    copies: jax.Array
    index: jax.Array
    first_slot: jax.Array
    expanded: jax.Array
    alignment: jax.Array
    state_slot: jax.Array
    state_place: jax.Array

    @property
    def used(self) -> jax.Array:
        """bool[B, E]: which entries of `expanded` hold a position."""
        return self.expanded < self.first_slot.shape[1]

    @property
    def num_targets(self) -> jax.Array:
        """int32[B]: the number of expanded tokens of each row."""
        return self.used.sum(1)

    @property
    def state_alignment(self) -> jax.Array:
        """int32[B, k·E]: the alignment of each state."""
        return jnp.repeat(self.alignment, self._num_states, axis=1)

    @property
    def shares_alignment(self) -> jax.Array:
        """bool[B, E, k·E]: whether an expanded token and a state belong to the same alignment."""
        return self.alignment[:, :, None] == self.state_alignment[:, None, :]

    @property
    def own_states(self) -> jax.Array:
        """bool[E, k·E]: which states are copies of an expanded token."""
        token_S = jnp.arange(self.state_slot.shape[1]) // self._num_states
        return token_S == jnp.arange(self.expanded.shape[1])[:, None]

    @property
    def _num_states(self) -> int:
        return self.state_slot.shape[1] // self.expanded.shape[1]

    def place(self, positions_BxM: jax.Array) -> jax.Array:
        """int32[B, M]: the index in `expanded` of each of the given positions; undefined for positions not expanded."""
        return (self.expanded[:, None, :] < positions_BxM[:, :, None]).sum(2)


def alignments(segments_BxT: jax.Array, num_alignments: int) -> jax.Array:
    """int32[B, T]: the alignment of each token: its document, but the last alignment has all further ones; 0: padding.

    Documents are numbered 1, 2, … from left to right, and padding is 0, as `data/packing.py` numbers them.
    """
    return jnp.minimum(segments_BxT, num_alignments)


def ends(alignment_BxT: jax.Array) -> jax.Array:
    """bool[B, T]: the first and the last token of each alignment."""
    padded_BxU = jnp.pad(alignment_BxT, ((0, 0), (1, 1)))
    is_first_BxT, is_last_BxT = (alignment_BxT != padded_BxU[:, at : at + alignment_BxT.shape[1]] for at in (0, 2))
    return (alignment_BxT > 0) & (is_first_BxT | is_last_BxT)


def expand(
    batch: MaskedBatch, alignment_BxT: jax.Array, anchors_BxT: jax.Array, max_anchors: int, num_states: int
) -> ExpandedRows:
    """Expands the masked positions and the anchors of each row.

    Args:
      batch: the rows; the encoder reads copies of `inputs`.
      alignment_BxT: int32, the alignment of each token, as `alignments` gives it.
      anchors_BxT: bool, further positions to expand; they may also be masked.
      max_anchors: the largest number of anchors in a row; if a row has more expanded positions than E, its last ones
        are not expanded.
      num_states: k.

    Returns:
      Rows with E = min(T, M + max_anchors) and L = T + (k − 1)·E, rounded up to a multiple of 8 for matrix units.
    """
    length = batch.tokens.shape[1]
    max_expanded = min(length, batch.positions.shape[1] + max_anchors)
    max_slots = row_slots(length, max_expanded, num_states)
    expanded_BxT = (selected_of(batch.positions, length) | anchors_BxT) & (batch.segments > 0)
    expanded_BxE = positions_of(expanded_BxT, max_expanded)

    # The number of expanded tokens before each token.
    before_BxT = (expanded_BxE[:, None, :] < jnp.arange(length)[None, :, None]).sum(2)
    first_slot_BxT = jnp.arange(length) + (num_states - 1) * before_BxT
    used_BxE = expanded_BxE < length
    start_BxE = jnp.where(used_BxE, expanded_BxE + (num_states - 1) * jnp.arange(max_expanded), max_slots)

    slot_L = jnp.arange(max_slots)
    # The number of expansions that begin at or before each slot.
    begun_BxL = (start_BxE[:, None, :] <= slot_L[None, :, None]).sum(2)
    latest_BxL = jnp.maximum(begun_BxL - 1, 0)
    copy_BxL = slot_L - jnp.take_along_axis(start_BxE, latest_BxL, axis=1)
    is_copy_BxL = (begun_BxL > 0) & (copy_BxL < num_states)
    index_BxL = jnp.where(
        is_copy_BxL, jnp.take_along_axis(expanded_BxE, latest_BxL, axis=1), slot_L - (num_states - 1) * begun_BxL
    )
    index_BxL = jnp.minimum(index_BxL, length)
    segments_BxL = gather_positions(batch.segments, index_BxL)
    alignment_BxE = gather_positions(alignment_BxT, expanded_BxE)
    is_other_BxExT = alignment_BxE[:, :, None] != alignment_BxT[:, None, :]
    first_BxE = jnp.where(is_other_BxExT, max_slots, first_slot_BxT[:, None, :]).min(2)
    state_slot_BxExk = start_BxE[:, :, None] + jnp.where(used_BxE[:, :, None], jnp.arange(num_states), 0)
    return ExpandedRows(
        tokens=gather_positions(batch.inputs, index_BxL),
        segments=segments_BxL,
        positions=gather_positions(positions_in_documents(batch.segments), index_BxL),
        copies=jnp.where(is_copy_BxL & (segments_BxL > 0), copy_BxL + 1, 0),
        index=index_BxL,
        first_slot=first_slot_BxT,
        expanded=expanded_BxE,
        alignment=alignment_BxE,
        state_slot=state_slot_BxExk.reshape(len(expanded_BxE), -1),
        state_place=(state_slot_BxExk - first_BxE[:, :, None]).reshape(len(expanded_BxE), -1),
    )
