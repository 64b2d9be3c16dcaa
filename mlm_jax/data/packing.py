"""Documents → rows of exactly T tokens, and which document a token of a row belongs to.

A document is cut into pieces of at most T − 2 tokens, and a piece is written as `[CLS] piece [SEP]`. Three
ways:

    documents        several whole pieces in a row; attention stays within a piece (`segment_ids` tells them
    apart) full_sentences   one stream over all documents, `[SEP]` after each; a row is `[CLS]` and the next T
    − 1 of the stream one_per_row      one piece in a row

Nothing but the tokens is stored: `[CLS]` never comes from text, so each one starts a segment.
"""

from collections.abc import Sequence

import numpy as np

from mlm_jax.masking import vocabulary as vocabulary_lib


def pack(
    documents: Sequence[np.ndarray],
    sequence_length: int,
    vocabulary: vocabulary_lib.Vocabulary,
    packing: str,
    dtype: np.dtype = np.int32,
) -> np.ndarray:
    """Packs tokenised documents into rows; every token of every document lands in exactly one place.

    Args:
      documents: int[n] each, ids of ordinary text; empty ones vanish.
      sequence_length: T, at least 3.
      vocabulary: the ids of [CLS], [SEP] and the padding.
      packing: 'documents', 'full_sentences' or 'one_per_row'.
      dtype: of the rows.

    Returns:
      dtype[R, T]; the padding stands at the end of rows.
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
    index = np.int32 if len(rows) < 1 << 31 else np.int64  # memory traffic is what this costs
    rows[at_P] = vocabulary.cls_id
    rows[at_P + 1 + lengths_P] = vocabulary.sep_id
    # The pieces cover the tokens in order, so token n of the whole stands at n plus a shift of its piece.
    places_N = np.repeat((at_P + 1 - starts_P).astype(index), lengths_P)
    places_N += np.arange(len(tokens_N), dtype=index)
    rows[places_N] = tokens_N
    return rows.reshape(num_rows, sequence_length)


def segment_ids(tokens, vocabulary: vocabulary_lib.Vocabulary):
    """Which document within its row a token belongs to.

    Args:
      tokens: int[..., T], NumPy or JAX, as `pack` made them.
      vocabulary: the ids of [CLS] and the padding.

    Returns:
      int32[..., T] of the same kind: 0 for padding; 1, 2, … for the segments that [CLS] tokens start.
    """
    starts = (tokens == vocabulary.cls_id).astype('int32')
    return starts.cumsum(axis=-1, dtype='int32') * (tokens != vocabulary.pad_id)


def cut(lengths: np.ndarray, piece_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents that lie one behind the other into pieces; only the last of a document may be short.

    Args:
      lengths: int64[D], tokens of each document, all positive.
      piece_length: the most tokens of a piece.

    Returns:
      The starts and lengths of the pieces in the whole, int64[P] each, in order.
    """
    counts_D = -(-lengths // piece_length)
    ends_D = np.cumsum(lengths)
    first_D = np.cumsum(counts_D) - counts_D  # the number of each document's first piece
    place_P = np.arange(counts_D.sum()) - np.repeat(first_D, counts_D)  # 0, 1, … within the document
    starts_P = np.repeat(ends_D - lengths, counts_D) + place_P * piece_length
    return starts_P, np.minimum(piece_length, np.repeat(ends_D, counts_D) - starts_P)


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts items, the largest first, each into the fullest bin that still takes it.

    Args:
      sizes: int[P], 1 … capacity.
      capacity: of a bin.

    Returns:
      The bin of each item, and its offset in the bin: int64[P] each.
    """
    order_P = np.argsort(-sizes, kind='stable')
    bins_P, offsets_P = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    open_bins = [[] for _ in range(capacity + 1)]  # by what they have free
    free_mask = 0  # bit f is set where open_bins[f] holds any: the best fit is the lowest set bit from `size` on
    num_bins = int(np.count_nonzero(sizes == capacity))  # most pieces of long documents fill a bin
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


def _pack_stream(tokens_N, lengths_D, sequence_length, vocabulary, dtype):
    stream = np.insert(tokens_N, np.cumsum(lengths_D), vocabulary.sep_id)
    num_rows = -(-len(stream) // (sequence_length - 1))
    body = np.full(num_rows * (sequence_length - 1), vocabulary.pad_id, dtype)
    body[: len(stream)] = stream
    rows = np.full((num_rows, sequence_length), vocabulary.cls_id, dtype)
    rows[:, 1:] = body.reshape(num_rows, sequence_length - 1)
    return rows
