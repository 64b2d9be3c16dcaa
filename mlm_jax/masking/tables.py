"""What masking must know about a tokenizer and a corpus, as arrays; and the hash by which n-grams are looked up.

Everything here takes arrays of NumPy or JAX and needs neither: `prepare` starts without JAX.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from mlm_jax.masking.vocabulary import Vocabulary

MAX_NGRAM = 5  # words of the longest collocation
# What the text of a piece says of words, besides a space before it: flags, to be added.
STARTS = 1  # a word starts in it
NEXT_STARTS = 2  # it ends with white space, so that the next piece starts a word
NEXT_CONTINUES = 4  # it is nothing but white space, which the next piece goes on with: they are one word
_MULTIPLIER = 0x9E3779B1  # odd, so that its powers have inverses modulo 2³²


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """Arrays that `data/tables.py` reads from a prepared directory; None where there is none.

    Attributes:
      word_starts: bool[V], whether a piece is written with a space before it.
      word_marks: uint8[V], the sum of the flags `STARTS`, `NEXT_STARTS` and `NEXT_CONTINUES`; None says nothing more.
      token_weights: float32[V], how gladly an id is chosen by the strategy `weighted`; 0 means never.
      collocations: uint32[P], ascending: the hashes of the n-grams of words that are units of `pmi`.
    """

    word_starts: np.ndarray | None = None
    token_weights: np.ndarray | None = None
    collocations: np.ndarray | None = None
    word_marks: np.ndarray | None = None


def find_word_starts(tokens, word_starts, word_marks=None):
    """Where words start, apart from the first token behind a special one, which always starts one.

    White space and the piece behind it are one word, so that a word is the same behind a line break and behind a space.

    Args:
      tokens: int[..., T], NumPy or JAX.
      word_starts: bool[V], of the same kind; special ids have False.
      word_marks: uint8[V], or None, as in `Tables`; special ids have 0.

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
    """Tables for synthetic rows: two ids of three start a word, low ids have low weights, few n-grams are listed."""
    ids = np.arange(vocabulary.size)
    collocations = np.unique(np.random.default_rng(0).integers(0, 1 << 32, 20_000, np.uint32))
    return Tables(ids % 3 > 0, np.sqrt(ids + 1.0).astype(np.float32), collocations)


def span_hashes(tokens) -> Callable:
    """A function (starts, ends) → uint32 hashes of the tokens start … end − 1, for rows of ids.

    The hash of a run is Σ mix(id)·a^(place in the run) modulo 2³², read off prefix sums: each costs the same, however
    long. Two different n-grams collide with probability 2⁻³².

    Args:
      tokens: int[..., T], NumPy or JAX.

    Returns:
      A function of int[..., T'] starts and ends within 0 … T, of the same kind, broadcast against each other.
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


def row_hash(tokens_BxT):
    """uint32[B]: what a row is known by wherever and whenever it appears. Equal rows have equal hashes."""
    places = np.cumprod(np.full(tokens_BxT.shape[1], _MULTIPLIER, np.uint32), dtype=np.uint32)
    return _mix((_mix(tokens_BxT.astype('uint32')) * places).sum(1, dtype='uint32'))
