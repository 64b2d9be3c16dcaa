"""The benchmark of the alignment likelihood measures two programs that compute the same."""

import numpy as np
import pytest

from mlm_jax import bench_likelihood


def test_both_sides_compute_the_same_and_autograd_holds_more():
    pytest.importorskip('torch')
    rows = bench_likelihood.random_rows(2, 20, 60)
    assert np.allclose(np.exp(rows[1][:, :-1]).sum(-1), 1, atol=1e-5)
    (run, held), (run_torch, held_torch) = bench_likelihood.ours(*rows), bench_likelihood.plain_torch(*rows)
    np.testing.assert_allclose(run(), run_torch(), rtol=1e-5)
    assert held < held_torch
    assert held_torch > 19 * 2 * 60**2 * 4  # (M − 1)·S² per row
