"""Synthetic rows, for measurements in which the content of the rows does not matter."""

import numpy as np

from mlm_jax.masking.vocabulary import Vocabulary


class SyntheticRows:
    """Random rows of one document each, generated from their index; benchmarks use them instead of prepared data."""

    def __init__(self, num_rows: int, length: int, vocabulary: Vocabulary):
        self._num_rows, self.sequence_length, self._vocabulary = num_rows, length, vocabulary

    def __len__(self) -> int:
        return self._num_rows

    def read(self, indices: np.ndarray) -> np.ndarray:
        """int32[n, T]: each row is [CLS], ordinary tokens and [SEP]."""
        v = self._vocabulary
        first, length = v.special_ids[-1] + 1, self.sequence_length
        rows = np.stack([np.random.default_rng(int(i)).integers(first, v.size, length, np.int32) for i in indices])
        rows[:, 0], rows[:, -1] = v.cls_id, v.sep_id
        return rows
