"""Which tokens are chosen together: tokens, words, spans of words, n-grams of tokens, collocations.

Each function returns bool[B, T], where units start; a unit extends up to the next start or to the next position that
must not be masked. Units therefore never overlap, cover every eligible position, and never contain a special token.
Units of random length divide the whole row anew at each draw, and a strategy chooses among them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mlm_jax.masking.candidates import next_boundary
from mlm_jax.masking.tables import MAX_NGRAM, Tables, find_word_starts, span_hashes

SPAN_P, MAX_SPAN = 0.2, 10
MAX_RANDOM_NGRAM = 3


def token(noise_BxT: jax.Array, tokens_BxT: jax.Array, eligible_BxT: jax.Array, tables: Tables | None) -> jax.Array:
    """Every token by itself.

    Args:
      noise_BxT: float32[B, T], random numbers in [0, 1), the only source of randomness.
      tokens_BxT: int32[B, T].
      eligible_BxT: bool[B, T], where masking is allowed.
      tables: what is known about the tokenizer and the corpus.

    Returns:
      bool[B, T], where units start.

    Raises:
      ValueError: if `tables` lacks a table that the unit needs.
    """
    del noise_BxT, tokens_BxT, tables
    return eligible_BxT


def word(noise_BxT: jax.Array, tokens_BxT: jax.Array, eligible_BxT: jax.Array, tables: Tables | None) -> jax.Array:
    """Whole words: a piece that follows white space and the pieces that continue it (BERT's whole-word masking).

    In scripts without spaces between words, each piece is a word of its own (data/word_marks.py).
    """
    del noise_BxT
    starts_V = jnp.asarray(_required(tables, 'word_starts', 'word'))
    marks_V = None if tables is None else tables.word_marks
    starts_BxT = find_word_starts(tokens_BxT, starts_V, None if marks_V is None else jnp.asarray(marks_V))
    return eligible_BxT & (starts_BxT | run_starts(eligible_BxT))


def span(noise_BxT: jax.Array, tokens_BxT: jax.Array, eligible_BxT: jax.Array, tables: Tables | None) -> jax.Array:
    """Spans of ℓ whole words, ℓ ~ Geo(0.2) truncated to 1 … 10, with mean 3.80 (SpanBERT, arXiv 1907.10529).

    SpanBERT draws starts and lengths until its budget is spent, and cuts the last span short. Here spans tile the row,
    and spans that do not fit are skipped. Long spans fit less often, so the first and last four or five tokens of a
    document, where spans are short, are chosen more often: for 15 % of 126 tokens, with a probability of up to 0.19 if
    words are single tokens, and of up to 0.23 if they have 1.5 on average.
    """
    words_BxT = word(noise_BxT, tokens_BxT, eligible_BxT, tables)
    passed = jnp.asarray(np.cumsum(span_distribution())[:-1], jnp.float32)
    length_BxT = 1 + (noise_BxT[..., None] >= passed).sum(-1, dtype=jnp.int32)
    return tiles(length_BxT, words_BxT, eligible_BxT, MAX_SPAN)


def ngram(noise_BxT: jax.Array, tokens_BxT: jax.Array, eligible_BxT: jax.Array, tables: Tables | None) -> jax.Array:
    """Runs of 1, 2 or 3 tokens, the three lengths being equally likely (GPT-BERT, arXiv 2410.24159)."""
    del tokens_BxT, tables
    length_BxT = 1 + jnp.floor(noise_BxT * MAX_RANDOM_NGRAM).astype(jnp.int32)
    return tiles(jnp.minimum(length_BxT, MAX_RANDOM_NGRAM), eligible_BxT, eligible_BxT, MAX_RANDOM_NGRAM)


def pmi(noise_BxT: jax.Array, tokens_BxT: jax.Array, eligible_BxT: jax.Array, tables: Tables | None) -> jax.Array:
    """Collocations of 2 to 5 words from a list, matched greedily from left to right; other words are units alone.

    Levine et al., PMI-Masking, arXiv 2010.01825.
    """
    words_BxT = word(noise_BxT, tokens_BxT, eligible_BxT, tables)
    listed = jnp.asarray(_required(tables, 'collocations', 'pmi'))
    if not len(listed):  # a small corpus may have none
        return words_BxT
    row_length = tokens_BxT.shape[1]
    hashes = span_hashes(tokens_BxT)
    next_BxT = next_boundary(words_BxT, eligible_BxT)
    end_BxT, length_BxT, whole_BxT = next_BxT, jnp.ones_like(next_BxT), words_BxT
    for n in range(2, MAX_NGRAM + 1):
        inside_BxT = jnp.minimum(end_BxT, row_length - 1)
        # Extends the run by one word, if a word starts where the last one ended.
        whole_BxT &= (end_BxT < row_length) & jnp.take_along_axis(words_BxT, inside_BxT, axis=1)
        whole_BxT &= ~jnp.take_along_axis(run_starts(eligible_BxT), inside_BxT, axis=1)
        end_BxT = jnp.where(whole_BxT, jnp.take_along_axis(next_BxT, inside_BxT, axis=1), end_BxT)
        hash_BxT = hashes(jnp.arange(row_length, dtype=jnp.int32), end_BxT)
        place_BxT = jnp.minimum(jnp.searchsorted(listed, hash_BxT), listed.shape[0] - 1)
        length_BxT = jnp.where(whole_BxT & (listed[place_BxT] == hash_BxT), n, length_BxT)
    return tiles(length_BxT, words_BxT, eligible_BxT, MAX_NGRAM)


def span_distribution() -> np.ndarray:
    """float64[10]: the probability that a span has 1, 2, …, 10 words, before spans that do not fit are skipped."""
    p = SPAN_P * (1 - SPAN_P) ** np.arange(MAX_SPAN)
    return p / p.sum()


def run_starts(eligible_BxT: jax.Array) -> jax.Array:
    """bool[B, T]: the first position of each run of eligible positions."""
    return eligible_BxT & ~jnp.pad(eligible_BxT[:, :-1], ((0, 0), (1, 0)))


def tiles(length_BxT: jax.Array, elements_BxT: jax.Array, eligible_BxT: jax.Array, longest: int) -> jax.Array:
    """Joins neighboring elements into tiles, from left to right. The length of a tile is read at its first position.

    No loop over positions is needed: let r be the number of elements that the current tile still lacks. Each position
    maps r to a new r, and these functions are composed by an associative scan in ⌈log T⌉ rounds.

    Args:
      length_BxT: int32[B, T], the number of elements, 1 … `longest`, of a tile that starts at the position.
      elements_BxT: bool[B, T], where elements start.
      eligible_BxT: bool[B, T]; a tile ends at the latest before a position that is not eligible.
      longest: R, the largest number of elements of a tile.

    Returns:
      bool[B, T], where tiles start.
    """
    new_run_BxT = run_starts(eligible_BxT)
    r_R = jnp.arange(longest, dtype=jnp.int32)
    fresh_BxTx1 = length_BxT[..., None] - 1
    after_BxTxR = jnp.where(elements_BxT[..., None], jnp.where(r_R == 0, fresh_BxTx1, r_R - 1), r_R)
    after_BxTxR = jnp.where(new_run_BxT[..., None], fresh_BxTx1, after_BxTxR)

    def then(first, second):
        return jnp.take_along_axis(second, first, axis=-1, mode='promise_in_bounds')

    left_BxT = jax.lax.associative_scan(then, after_BxTxR, axis=1)[..., 0]
    left_before_BxT = jnp.pad(left_BxT[:, :-1], ((0, 0), (1, 0)))
    return elements_BxT & (new_run_BxT | (left_before_BxT == 0))


def _required(tables: Tables | None, name: str, unit: str) -> np.ndarray:
    array = None if tables is None else getattr(tables, name)
    if array is None:
        raise ValueError(f'the unit {unit!r} needs the table {name!r}, which the Masking does not have')
    return array
