"""Cross-entropy against its definition."""

import jax
import numpy as np
import pytest

from mlm_jax.losses import cross_entropy

negative_log_likelihood = jax.jit(cross_entropy.negative_log_likelihood)
cross_entropy_terms = jax.jit(cross_entropy.cross_entropy_terms)


def test_equals_the_definition_in_float64():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 5, (3, 4, 7)), rng.integers(0, 7, (3, 4))
    expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(negative_log_likelihood(logits.astype(np.float32), targets), expected, atol=1e-5)


def test_stays_finite_for_huge_logits():
    logits = np.array([[[1e4, -1e4, 0.0]]], np.float32)
    assert float(negative_log_likelihood(logits, np.array([[1]]))[0, 0]) == pytest.approx(2e4)


def test_unused_slots_count_nothing_and_weights_weigh():
    logits = np.zeros((1, 3, 4), np.float32)
    logits[0, 0, 2] = 3.0
    targets, weights = np.array([[2, 0, 1]]), np.array([[2.0, 0.0, 1.0]], np.float32)
    terms = cross_entropy_terms(logits, targets, weights)
    nll = np.log(3 + np.exp(3)) - 3
    assert float(terms.loss_sum) == pytest.approx(2 * nll + np.log(4), rel=1e-5)
    assert float(terms.weight_sum) == 3.0
    assert [float(x) for x in terms.metrics['accuracy']] == [1.0, 2.0]


def test_a_row_without_masked_positions_has_no_weight_and_a_finite_gradient():
    def loss(logits):
        return cross_entropy_terms(logits, np.zeros((1, 2), int), np.zeros((1, 2), np.float32)).loss_sum

    value, gradient = jax.jit(jax.value_and_grad(loss))(np.ones((1, 2, 5), np.float32))
    assert float(value) == 0.0
    assert np.all(np.asarray(gradient) == 0)
