"""Packs documents into rows of exactly T tokens, and finds to which document each token of a row belongs.

A document is divided into pieces of at most T − 2 tokens, and each piece is written as `[CLS] piece [SEP]`. There are
three ways to pack:

    documents        a row holds several whole pieces; attention stays within a piece (`segment_ids`)
    full_sentences   all documents form one stream, with `[SEP]` after each; a row is `[CLS]` and the next T − 1 tokens
    one_per_row      a row holds one piece

Only the tokens are stored. Text never produces `[CLS]`, so each `[CLS]` starts a segment.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from mlm_jax.masking import vocabulary as vocabulary_lib

if TYPE_CHECKING:  # `prepare` starts without JAX
    import jax

Array = TypeVar('Array', 'jax.Array', np.ndarray)


def pack(
    documents: Sequence[np.ndarray],
    sequence_length: int,
    vocabulary: vocabulary_lib.Vocabulary,
    packing: str,
    dtype: DTypeLike = np.int32,
) -> np.ndarray:
    """Packs tokenized documents into rows; every token of every document is stored exactly once.

    Args:
      documents: int[n] each, ids of ordinary text; empty documents are dropped.
      sequence_length: T, at least 3.
      vocabulary: the ids of [CLS], [SEP] and padding.
      packing: 'documents', 'full_sentences' or 'one_per_row'.
      dtype: the dtype of the rows.

    Returns:
      dtype[R, T], with padding at the end of rows.

    Raises:
      ValueError: if `sequence_length` is too small or `packing` is unknown.
    """
    if sequence_length < 3:
        raise ValueError(
            f'sequence_length={sequence_length} leaves no room for text beside [CLS] and [SEP]; use 3 or more'
        )
    lengths_D = np.array([len(d) for d in documents if len(d)], np.int64)
    tokens_N = np.concatenate([d for d in documents if len(d)]) if len(lengths_D) else np.zeros(0, dtype)
    if packing == 'full_sentences':
        return _pack_stream(tokens_N, lengths_D, sequence_length, vocabulary, dtype)
    starts_P, lengths_P = cut(lengths_D, sequence_length - 2)
    if packing == 'documents':
        bins_P, offsets_P = best_fit_decreasing(lengths_P + 2, sequence_length)
    elif packing == 'one_per_row':
        bins_P, offsets_P = np.arange(len(lengths_P)), np.zeros(len(lengths_P), np.int64)
    else:
        raise ValueError(f'data.packing={packing!r} must be documents, full_sentences or one_per_row')

    num_rows = int(bins_P.max()) + 1 if len(bins_P) else 0
    rows = np.full(num_rows * sequence_length, vocabulary.pad_id, dtype)
    at_P = bins_P * sequence_length + offsets_P
    index = np.int32 if len(rows) < 1 << 31 else np.int64  # memory traffic dominates the cost of this function
    rows[at_P] = vocabulary.cls_id
    rows[at_P + 1 + lengths_P] = vocabulary.sep_id
    # The pieces cover the tokens in order, so token n of all tokens goes to n plus an offset of its piece.
    places_N = np.repeat((at_P + 1 - starts_P).astype(index), lengths_P)
    places_N += np.arange(len(tokens_N), dtype=index)
    rows[places_N] = tokens_N
    return rows.reshape(num_rows, sequence_length)


def segment_ids(tokens: Array, vocabulary: vocabulary_lib.Vocabulary) -> Array:
    """The document within its row to which each token belongs.

    Args:
      tokens: int[..., T], a NumPy or JAX array as returned by `pack`.
      vocabulary: the ids of [CLS] and padding.

    Returns:
      int32[..., T], an array of the same library: 0 for padding, and 1, 2, … for the segments that [CLS] starts.
    """
    starts = (tokens == vocabulary.cls_id).astype('int32')
    return starts.cumsum(axis=-1, dtype='int32') * (tokens != vocabulary.pad_id)


def cut(lengths: np.ndarray, piece_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides concatenated documents into pieces; only the last piece of a document may be short.

    Args:
      lengths: int64[D], the number of tokens of each document, all positive.
      piece_length: the maximum number of tokens of a piece.

    Returns:
      The starts of the pieces in the concatenation, and their lengths: int64[P] each, in order.
    """
    counts_D = -(-lengths // piece_length)
    ends_D = np.cumsum(lengths)
    first_D = np.cumsum(counts_D) - counts_D  # the index of each document's first piece
    place_P = np.arange(counts_D.sum()) - np.repeat(first_D, counts_D)  # 0, 1, … within the document
    starts_P = np.repeat(ends_D - lengths, counts_D) + place_P * piece_length
    return starts_P, np.minimum(piece_length, np.repeat(ends_D, counts_D) - starts_P)


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts items into bins: each item, the largest first, goes into the fullest bin that still has room for it.

    Args:
      sizes: int[P], the sizes of the items, 1 … capacity.
      capacity: the size of a bin.

    Returns:
      The bin of each item and its offset in the bin: int64[P] each.
    """
    order_P = np.argsort(-sizes, kind='stable')
    bins_P, offsets_P = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by their free space
    free_mask = 0  # bit f is set if open_bins[f] is not empty: the best fit is the lowest set bit from `size` on
    num_bins = int(np.count_nonzero(sizes == capacity))  # most pieces of long documents fill a whole bin
    bins_P[order_P[:num_bins]] = np.arange(num_bins)
    rest_P = order_P[num_bins:]
    for item, size in zip(rest_P.tolist(), sizes[rest_P].tolist(), strict=True):
        fitting = free_mask >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            chosen = open_bins[free].pop()
            if not open_bins[free]:
                free_mask ^= 1 << free
        else:
            chosen, free = num_bins, capacity
            num_bins += 1
        bins_P[item], offsets_P[item] = chosen, capacity - free
        open_bins[free - size].append(chosen)
        free_mask |= 1 << free - size
    return bins_P, offsets_P


def _pack_stream(
    tokens_N: np.ndarray,
    lengths_D: np.ndarray,
    sequence_length: int,
    vocabulary: vocabulary_lib.Vocabulary,
    dtype: DTypeLike,
) -> np.ndarray:
    stream = np.insert(tokens_N, np.cumsum(lengths_D), vocabulary.sep_id)
    num_rows = -(-len(stream) // (sequence_length - 1))
    body = np.full(num_rows * (sequence_length - 1), vocabulary.pad_id, dtype)
    body[: len(stream)] = stream
    rows = np.full((num_rows, sequence_length), vocabulary.cls_id, dtype)
    rows[:, 1:] = body.reshape(num_rows, sequence_length - 1)
    return rows
