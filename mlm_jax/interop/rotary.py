"""Rotary positions in other layouts: which features of a head are turned together, and how far.

Here the features of a head fall into A shares, one for each coordinate of a position, and feature j of a share turns
with feature j + R of it, R = D / 2A, by position · base^(−j / R).
"""

import numpy as np

from mlm_jax.interop.architecture import Encoder

POSITIONS = ('rotary', 'rotary_2d')


def _pairs(e: Encoder) -> np.ndarray:
    """int[D/2, 2]: the two features of each pair, in the order of `frequencies`."""
    shares = POSITIONS.index(e.positions) + 1
    width = e.width // e.num_heads
    half = width // shares // 2
    starts = np.arange(shares)[:, None] * 2 * half
    first = (starts + np.arange(half)).reshape(-1)
    return np.stack([first, first + half], axis=1)


def frequencies(e: Encoder) -> np.ndarray:
    """f64[D/2]: by how much each pair turns from one token to the next; 0 for pairs of the second coordinate."""
    pairs = e.width // e.num_heads // 2
    moved = pairs // (POSITIONS.index(e.positions) + 1)
    inverse = np.float64(e.rotary_base) ** -(np.arange(moved) / moved)
    return np.concatenate([inverse, np.zeros(pairs - moved)])


def halves_first(e: Encoder) -> np.ndarray | None:
    """int[D]: our feature for each of theirs, where feature j turns with j + D/2; None where that is ours."""
    order = _pairs(e).T.reshape(-1)
    return None if np.array_equal(order, np.arange(len(order))) else order


def interleaved(e: Encoder) -> np.ndarray:
    """int[D]: our feature for each of theirs, where feature 2j turns with 2j + 1."""
    return _pairs(e).reshape(-1)


def sines_and_cosines(e: Encoder) -> np.ndarray:
    """f64[max_length, D]: the sines of all pairs, then their cosines, by position."""
    angles = np.arange(e.max_length)[:, None] * frequencies(e)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
