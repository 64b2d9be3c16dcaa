"""Effective rank: against singular values, streaming, centred and not."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from mlm_jax.analysis.effective_rank import GramSums, effective_rank, gram_sums

grams = jax.jit(gram_sums)


def by_definition(hidden: np.ndarray, threshold: float) -> int:
    share = np.cumsum(np.linalg.svd(hidden.astype(np.float64), compute_uv=False) ** 2)
    return int(np.argmax(share / share[-1] >= threshold) + 1)


@pytest.mark.parametrize('centred', [False, True])
@pytest.mark.parametrize('threshold', [0.5, 0.9, 0.99])
def test_equals_the_definition_by_singular_values_batch_by_batch(centred, threshold):
    rng = np.random.default_rng(0)
    num_layers, batches, tokens, width = 3, 4, (5, 7), 16
    scale = rng.uniform(0.1, 3.0, (num_layers, 1, 1, 1, width)) ** 2
    hidden = (rng.normal(size=(num_layers, batches, *tokens, width)) * scale + 1.0).astype(np.float32)
    member = rng.random((2, batches, *tokens)) < 0.6
    sums = GramSums.zeros(num_layers, 2, width)
    for i in range(batches):
        sums.add(*grams(hidden[:, i], member[:, i]))
    ranks = effective_rank(sums.spectra(centred), threshold)
    assert sums.count_G.tolist() == member.sum((1, 2, 3)).tolist()
    for layer in range(num_layers):
        for group in range(2):
            rows = hidden[layer][member[group]]
            rows = rows - rows.mean(0) if centred else rows
            assert ranks[layer, group] == by_definition(rows, threshold)


@hypothesis.given(st.integers(1, 6), st.integers(6, 12))
@hypothesis.settings(deadline=None, max_examples=20)
def test_a_subspace_has_its_dimension(rank, width):
    rng = np.random.default_rng(rank * 100 + width)
    hidden = rng.normal(size=(1, 4, 50, rank)) @ np.linalg.qr(rng.normal(size=(width, rank)))[0].T
    sums = GramSums.zeros(1, 1, width)
    sums.add(*grams(hidden.astype(np.float32), np.ones((1, 4, 50), bool)))
    assert effective_rank(sums.spectra(centered=False), 1 - 1e-6)[0, 0] == rank


def test_known_spectra():
    assert effective_rank(np.array([4.0, 3.0, 2.0, 1.0]), 0.9) == 3
    assert effective_rank(np.array([4.0, 3.0, 2.0, 1.0]), 0.91) == 4
    assert effective_rank(np.array([1.0, 0.0, 0.0]), 1.0) == 1
    assert effective_rank(np.full(10, 1.0), 1.0) == 10
    assert effective_rank(np.zeros(3), 0.9) == 0


def test_no_tokens_of_a_group_give_rank_zero():
    sums = GramSums.zeros(1, 2, 3)
    sums.add(*grams(np.ones((1, 2, 4, 3), np.float32), np.stack([np.ones((2, 4)), np.zeros((2, 4))]) > 0))
    assert effective_rank(sums.spectra(centered=False)).tolist() == [[1, 0]]
    assert effective_rank(sums.spectra(centered=True)).tolist() == [[0, 0]]
