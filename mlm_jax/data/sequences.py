"""Rows that hold one text or one pair of texts: their special tokens, and the lengths that they are padded to."""

from collections.abc import Sequence

import numpy as np

from mlm_jax.masking.vocabulary import Vocabulary

SEPARATORS = 2  # [SEP] between the texts of a pair, as in RoBERTa and in MAE-LM's release


def join(pieces: Sequence[np.ndarray], vocabulary: Vocabulary, separators: int = SEPARATORS) -> np.ndarray:
    """int32[n]: `[CLS] A [SEP]`, or of a pair `[CLS] A [SEP] [SEP] B [SEP]`.

    Args:
      pieces: the ids of each text, without special tokens.
      vocabulary: with the ids of [CLS] and [SEP].
      separators: how many [SEP] stand between the texts of a pair, 1 or more.
    """
    v = vocabulary
    row: list[np.ndarray] = []
    for piece in pieces:
        before = [v.sep_id] * (separators - 1) if row else [v.cls_id]
        row += [np.array(before, np.int32), piece, np.array([v.sep_id])]
    return np.concatenate(row).astype(np.int32)


def padded_length(length: int, smallest_step: int, max_length: int) -> int:
    """`length` rounded up to a multiple of a step: the larger of `smallest_step` and ¼ · 2^⌊log₂ length⌋.

    A program is compiled for each padded length, so there are few of them; padding costs computation, so it is short.
    The result is at most `max_length`: a model has no position embeddings beyond that, and would read NaN there.
    """
    step = max(smallest_step, (1 << length.bit_length() - 1) // 4)
    return min(-(-length // step) * step, max_length)


def pad(rows: Sequence[np.ndarray], num_rows: int, length: int, pad_id: int) -> np.ndarray:
    """int32[num_rows, length]: rows of at most `length` tokens, each padded at its end; missing rows are padding."""
    tokens_BxT = np.full((num_rows, length), pad_id, np.int32)
    for i, row in enumerate(rows):
        tokens_BxT[i, : len(row)] = row
    return tokens_BxT
