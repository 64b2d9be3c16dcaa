"""Finds collocations, n-grams of words that belong together, for the masking unit `pmi`."""

from collections.abc import Iterable, Iterator

import numpy as np

from mlm_jax.masking.tables import MAX_NGRAM, find_word_starts, span_hashes
from mlm_jax.masking.vocabulary import Vocabulary

MAX_TOKENS = 20_000_000  # only so many tokens of the corpus are read
MIN_COUNT = 10
MIN_PMI = 4.0  # nats: e⁴ = 55 times as often as the most likely parts would co-occur by chance
_REPRESENTATIVES = 20_000  # number of n-grams whose parts are looked up at a time


def collocations(
    blocks: Iterable[np.ndarray],
    word_starts: np.ndarray,
    vocabulary: Vocabulary,
    min_count: int = MIN_COUNT,
    word_marks: np.ndarray | None = None,
) -> np.ndarray:
    """The n-grams of 2 to 5 words with a high pointwise mutual information (Levine et al., arXiv 2010.01825).

    The mutual information of n words is log p(w₁…wₙ) − max Σ log p(part), where the maximum is over all ways to divide
    them into two or more parts. So "the United States of" does not become a collocation merely because it contains
    "United States". The authors keep 800,000 n-grams, with quotas for each length, so that about half of all tokens lie
    in one (github.com/AI21Labs/pmi-masking); here, `MIN_PMI` decides alone, for corpora of any size.

    Args:
      blocks: packed rows, int[R, T] each; reading stops after `MAX_TOKENS`.
      word_starts: bool[V], whether a piece starts a word.
      vocabulary: the special ids.
      min_count: n-grams that occur less often are not collocations.
      word_marks: uint8[V], further word marks of the pieces, as in `masking.tables.Tables`.

    Returns:
      uint32[P], ascending: the hashes of the collocations, by `masking.tables.span_hashes`.
    """
    tokens = np.concatenate(list(_limited(blocks)))
    starts = find_word_starts(tokens, word_starts, word_marks)
    bounds_WxN, row_W = _words(tokens, starts, vocabulary)
    seen = {}  # n → the hashes of all n-grams, ascending, and the logarithms of their frequencies
    candidates = {}  # n → one occurrence of each n-gram that is frequent enough
    hashes = span_hashes(tokens.reshape(1, -1))  # the whole corpus as one row
    flat_WxN = bounds_WxN + (row_W * tokens.shape[1])[:, None]
    for n in range(1, MAX_NGRAM + 1):
        whole_W = np.flatnonzero(bounds_WxN[:, n] >= 0)
        hash_W = hashes(flat_WxN[whole_W, 0], flat_WxN[whole_W, n])[0]
        unique, first, count = np.unique(hash_W, return_index=True, return_counts=True)
        seen[n] = unique, np.log(count / len(row_W))
        candidates[n] = whole_W[first[count >= min_count]]
    found = [np.zeros(0, np.uint32)]
    for n in range(2, MAX_NGRAM + 1):
        for start in range(0, len(candidates[n]), _REPRESENTATIVES):
            flat_PxN = flat_WxN[candidates[n][start : start + _REPRESENTATIVES], : n + 1]
            found.append(hashes(flat_PxN[:, 0], flat_PxN[:, n])[0][_pmi(flat_PxN, hashes, seen) >= MIN_PMI])
    return np.unique(np.concatenate(found))


def _limited(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    left = MAX_TOKENS
    for block in blocks:
        block = block[: max(1, left // block.shape[1])]
        yield np.asarray(block)
        left -= block.size
        if left <= 0:
            return


def _words(tokens: np.ndarray, starts: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Where each word starts, where the spans of 1 … 5 words from it on end, and the row of each word.

    Returns:
      int64[W, 6]: for each word its start and the ends of the spans of 1, 2, … 5 words, as positions in its row; an end
      is −1 if the text ends earlier. int64[W]: the row of each word.
    """
    ordinary = ~np.isin(tokens, vocabulary.special_ids)
    run_starts = ordinary & ~np.pad(ordinary[:, :-1], ((0, 0), (1, 0)))
    starts = ordinary & (starts | run_starts)
    boundary = np.where(starts | ~ordinary, np.arange(tokens.shape[1]), tokens.shape[1])
    following = np.minimum.accumulate(boundary[:, ::-1], axis=1)[:, ::-1]
    following = np.pad(following[:, 1:], ((0, 0), (0, 1)), constant_values=tokens.shape[1])
    row_W, start_W = np.nonzero(starts)
    bounds = [start_W.astype(np.int64), following[row_W, start_W].astype(np.int64)]
    # Words are in order, so n words end where the (n − 1)-th following word ends, if they are contiguous.
    for n in range(2, MAX_NGRAM + 1):
        last = np.minimum(np.arange(len(row_W)) + n - 1, len(row_W) - 1)
        joined = (bounds[-1] >= 0) & (row_W[last] == row_W) & (start_W[last] == bounds[-1])
        joined &= ~run_starts[row_W[last], start_W[last]]
        bounds.append(np.where(joined, bounds[1][last], -1))
    return np.stack(bounds, axis=1), row_W.astype(np.int64)


def _pmi(bounds_PxN: np.ndarray, hashes, seen: dict) -> np.ndarray:
    """float64[P]: the pointwise mutual information of n-grams; `bounds_PxN` has the n + 1 bounds of their words."""
    n = bounds_PxN.shape[1] - 1

    def log_probability(i: int, j: int) -> np.ndarray:
        known, value = seen[j - i]
        return value[np.searchsorted(known, hashes(bounds_PxN[:, i], bounds_PxN[:, j])[0])]

    best = [np.zeros(len(bounds_PxN))]  # log probability of the first j words, divided in the most likely way
    for j in range(1, n + 1):
        cuts = [best[i] + log_probability(i, j) for i in range(j) if j - i < n]
        best.append(np.max(cuts, axis=0))
    return log_probability(0, n) - best[n]
