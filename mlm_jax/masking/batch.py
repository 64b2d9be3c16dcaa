"""The batch that every masking strategy produces and every objective reads."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class MaskedBatch:
    """Rows of text with the positions to predict. All shapes are static.

    Attributes:
      tokens: int32[B, T], the original ids; the targets are read from here.
      inputs: int32[B, T], the ids after corruption in place; plain MLM feeds these to the encoder.
      positions: int32[B, M], the masked positions in ascending order; unused slots hold T.
      weights: float32[B, M], 0 in unused slots; elsewhere 1, or the loss weight that the strategy gives.
      segments: int32[B, T], 0 on padding; 1, 2, … number the documents within a row.
      step: int32[B], the step of the run that trains on the row; None where nothing is trained.
    """

    tokens: jax.Array
    inputs: jax.Array
    positions: jax.Array
    weights: jax.Array
    segments: jax.Array
    step: jax.Array | None = None

    @property
    def targets(self) -> jax.Array:
        """int32[B, M]: the original ids at the masked positions; 0 in unused slots."""
        return gather_positions(self.tokens, self.positions)


def gather_positions(x_BxTx: jax.Array, positions_BxM: jax.Array) -> jax.Array:
    """Gathers [B, M, …] from [B, T, …] at `positions_BxM`; the result is 0 where a position is T (an unused slot)."""
    index = positions_BxM.reshape(positions_BxM.shape + (1,) * (x_BxTx.ndim - 2))
    return jnp.take_along_axis(x_BxTx, index, axis=1, mode='fill', fill_value=0)


def selected_of(positions_BxM: jax.Array, length: int) -> jax.Array:
    """bool[B, T]: whether each position of a row is among `positions_BxM`; the inverse of `positions_of`."""
    return (positions_BxM[:, :, None] == jnp.arange(length)).any(1)


def positions_of(selected_BxT: jax.Array, max_masked: int) -> jax.Array:
    """int32[B, M]: the first `max_masked` selected positions of each row, ascending; unused slots hold T."""
    length = selected_BxT.shape[1]
    index_BxT = jnp.where(selected_BxT, jnp.arange(length, dtype=jnp.int32), length)
    return jnp.sort(index_BxT, axis=1)[:, :max_masked]
