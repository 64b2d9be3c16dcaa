"""Which layers attend within windows, and the blocks of the splash kernel; without JAX, as FLOPs depend on both."""

import math

LANES = 128  # rows are padded to multiples of this
LARGEST, LARGEST_OF_WINDOWS = 512, 256


def local_layers(num_layers: int, local_window: int, global_every: int) -> tuple[bool, ...]:
    """Whether each layer attends within a window: layer i does if `global_every` does not divide i."""
    return tuple(local_window > 0 and layer % global_every != 0 for layer in range(num_layers))


def splash_block(length: int, radius: int | None = None) -> int:
    """The largest multiple of 128, up to 512, that divides the length.

    The kernel processes a row in blocks of this size; with its default of 128, a row of 512 would take 16 steps. Of a
    local layer it skips the blocks in which no key is within reach: with large blocks, there are few of these. Blocks
    for narrow windows are therefore 256 at most. (This limit has not been measured on a TPU.)

    Args:
      length: of the row, a multiple of 128.
      radius: the largest distance of queries and keys in a local layer; None for other layers.
    """
    largest = LARGEST if radius is None or radius >= LARGEST_OF_WINDOWS else LARGEST_OF_WINDOWS
    return next(block for block in range(largest, 0, -LANES) if length % block == 0)


def pairs_in_windows(length: float, radius: int) -> float:
    """The number of pairs of queries and keys of a row that the kernel computes in a local layer, in whole blocks."""
    padded = math.ceil(length / LANES) * LANES
    block = splash_block(padded, radius)
    # Block i + j begins (j − 1)·block + 1 places after the end of block i.
    reach = (radius + block - 1) // block
    in_reach = sum(min(i + reach, padded // block - 1) - max(i - reach, 0) + 1 for i in range(padded // block))
    return float(in_reach * block**2)
