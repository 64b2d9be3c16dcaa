"""Rows of tokens, and masks of them: what the tests of masking share."""

import functools

import jax
import numpy as np

from mlm_jax.data.packing import segment_ids
from mlm_jax.masking import tables
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary

VOCABULARY = standard_vocabulary(50)
TABLES = tables.stand_in(VOCABULARY)


def rows(seed: int, batch: int = 8, length: int = 48) -> np.ndarray:
    """Rows of one or two documents with padding behind them."""
    rng = np.random.default_rng(seed)
    tokens = np.full((batch, length), VOCABULARY.pad_id, np.int32)
    for row in tokens:
        end = 0
        for _ in range(rng.integers(1, 3)):
            size = int(rng.integers(3, length // 2))
            row[end : end + size] = rng.integers(5, VOCABULARY.size, size)
            row[end], row[end + size - 1] = VOCABULARY.cls_id, VOCABULARY.sep_id
            end += size
    return tokens


def full_rows(batch: int, length: int = 22) -> np.ndarray:
    """Rows of random tokens between [CLS] and [SEP]."""
    tokens = np.random.default_rng(0).integers(5, VOCABULARY.size, (batch, length)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls_id, VOCABULARY.sep_id
    return tokens


def make(strategy: str = 'uniform', unit: str = 'token', ratio: float = 0.15, **settings) -> Masking:
    return Masking(VOCABULARY, strategy, ratio, unit=unit, tables=TABLES, **settings)


@functools.partial(jax.jit, static_argnums=0)
def draw(masking: Masking, key, tokens, step=0):
    return masking.draw(key, tokens, segment_ids(tokens, masking.vocabulary), step)


def mask(masking: Masking, key, tokens, step=0) -> MaskedBatch:
    return draw(masking, key, tokens, step)[0]


def masked_positions(batch: MaskedBatch) -> np.ndarray:
    """bool[B, T]."""
    positions, length = np.asarray(batch.positions), batch.tokens.shape[1]
    return (positions[:, :, None] == np.arange(length)).any(1)
