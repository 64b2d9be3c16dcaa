"""What masking must know about a tokenizer and a corpus, as arrays; and the hash by which n-grams are looked up.

The functions take arrays of NumPy or of JAX. This file does not import JAX, because `prepare` starts without it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mlm_jax.masking.vocabulary import Vocabulary

Array = Any  # an array of NumPy or of JAX; the type of a JAX array cannot be named without importing JAX

MAX_NGRAM = 5  # the number of words in the longest collocations
# Flags for what the text of a piece says about word boundaries, besides a space before the piece; they are added up.
STARTS = 1  # a word starts within the piece
NEXT_STARTS = 2  # the piece ends with white space, so the next piece starts a word
NEXT_CONTINUES = 4  # the piece is nothing but white space and belongs to the same word as the next piece
_MULTIPLIER = 0x9E3779B1  # odd, so that its powers have inverses modulo 2³²


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """Arrays that `data/masking_tables.py` reads from a prepared directory; None for a table that is not there.

    Attributes:
      word_starts: bool[V], whether a piece is written with a space before it.
      token_weights: float32[V], the sampling weight of each id in the strategy `weighted`; ids of weight 0 are never
        chosen.
      collocations: uint32[P], ascending: the hashes of the n-grams of words that are units of `pmi`.
      word_marks: uint8[V], for each piece the sum of its flags `STARTS`, `NEXT_STARTS` and `NEXT_CONTINUES`; None if
        no piece has any.
    """

    word_starts: np.ndarray | None = None
    token_weights: np.ndarray | None = None
    collocations: np.ndarray | None = None
    word_marks: np.ndarray | None = None


def find_word_starts(tokens: Array, word_starts: Array, word_marks: Array | None = None) -> Array:
    """Where words start. The first token after a special token also starts a word, which the caller must add.

    White space and the piece after it form one word, so that a word is the same after a line break and after a space.

    Args:
      tokens: int[..., T], NumPy or JAX.
      word_starts: bool[V], of the same array library as `tokens`; False for special ids.
      word_marks: uint8[V], or None, as in `Tables`; 0 for special ids.

    Returns:
      bool[..., T].
    """
    starts = word_starts[tokens]
    if word_marks is None:
        return starts
    xp = tokens.__array_namespace__()
    own = word_marks[tokens]
    before = xp.concatenate([xp.zeros_like(own[..., :1]), own[..., :-1]], axis=-1)
    starts = (starts | (own & STARTS > 0)) & (before & NEXT_CONTINUES == 0)
    return starts | (before & NEXT_STARTS > 0)


def stand_in(vocabulary: Vocabulary) -> Tables:
    """Tables for synthetic rows: two of three ids start a word, low ids have low weights, few n-grams are listed."""
    ids = np.arange(vocabulary.size)
    collocations = np.unique(np.random.default_rng(0).integers(0, 1 << 32, 20_000, np.uint32))
    return Tables(ids % 3 > 0, np.sqrt(ids + 1.0).astype(np.float32), collocations)


def span_hashes(tokens: Array) -> Callable[[Array, Array], Array]:
    """Returns a function (starts, ends) → uint32 hashes of the tokens start … end − 1 of each row.

    The hash of a run of tokens is Σ mix(id)·a^(index in the run) modulo 2³². It is computed from prefix sums, so its
    cost does not depend on the length of the run. Two different n-grams collide with probability 2⁻³².

    Args:
      tokens: int[..., T], NumPy or JAX.

    Returns:
      A function of starts and ends, both int[..., T'] with values in 0 … T; they broadcast against each other and are
      arrays of the same library as `tokens`.
    """
    xp = tokens.__array_namespace__()
    length = tokens.shape[-1]
    powers = np.cumprod(np.full(length, _MULTIPLIER, np.uint32), dtype=np.uint32)
    inverse = pow(_MULTIPLIER, -1, 1 << 32)
    inverses = np.cumprod(np.array([1] + [inverse] * length, np.uint32), dtype=np.uint32)
    prefix = xp.cumsum(_mix(xp.asarray(tokens).astype('uint32')) * xp.asarray(powers), axis=-1, dtype='uint32')
    prefix = xp.concatenate([xp.zeros_like(prefix[..., :1]), prefix], axis=-1)

    def hashes(starts, ends):
        starts, ends = (xp.broadcast_to(x, tokens.shape[:-1] + x.shape[-1:]) for x in (starts, ends))
        total = xp.take_along_axis(prefix, ends, axis=-1) - xp.take_along_axis(prefix, starts, axis=-1)
        return total * xp.asarray(inverses)[starts]

    return hashes


def _mix(x):
    """MurmurHash3's finalizer, on uint32 of NumPy or JAX: every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> 16)) * x.dtype.type(0x85EBCA6B)
    x = (x ^ (x >> 13)) * x.dtype.type(0xC2B2AE35)
    return x ^ (x >> 16)


def row_hash(tokens_BxT: Array) -> Array:
    """uint32[B]: a hash that identifies a row by its tokens, in whatever batch it appears."""
    places = np.cumprod(np.full(tokens_BxT.shape[1], _MULTIPLIER, np.uint32), dtype=np.uint32)
    return _mix((_mix(tokens_BxT.astype('uint32')) * places).sum(1, dtype='uint32'))
