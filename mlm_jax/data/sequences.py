"""Single texts as rows: their special tokens, and the few lengths that rows are padded to."""

from collections.abc import Sequence

import numpy as np

from mlm_jax.masking.vocabulary import Vocabulary


def join(pieces: Sequence[np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """int32[n]: `[CLS] A [SEP]`, `[CLS] A [SEP] [SEP] B [SEP]` (RoBERTa, and MAE-LM's release)."""
    v = vocabulary
    row: list[np.ndarray] = []
    for piece in pieces:
        row += [np.array([v.sep_id if row else v.cls_id]), piece, np.array([v.sep_id])]
    return np.concatenate(row).astype(np.int32)


def padded_length(length: int, smallest_step: int, max_length: int) -> int:
    """`length` rounded up, to a multiple of `smallest_step` or of a quarter of the power of two below it.

    A program is compiled for each such length, so there are few; padding is computed, so it is little. None is above
    `max_length`: padding behind the last position that a model knows would not be a number.
    """
    step = max(smallest_step, (1 << length.bit_length() - 1) // 4)
    return min(-(-length // step) * step, max_length)


def pad(rows: Sequence[np.ndarray], num_rows: int, length: int, pad_id: int) -> np.ndarray:
    """int32[num_rows, length]: rows of at most `length` tokens, padded; behind the last one, rows of padding."""
    tokens_BxT = np.full((num_rows, length), pad_id, np.int32)
    for i, row in enumerate(rows):
        tokens_BxT[i, : len(row)] = row
    return tokens_BxT
