"""Dropout: how much it drops, and what it does to the mean, to neighbours and to gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.models.dropout import dropout


@pytest.mark.parametrize('rate, rows', [(0.1, 1000), (0.5, 1001), (0.1, 3), (0.999, 100)])
def test_the_share_that_is_dropped_and_the_scale_of_the_rest(rate, rows):
    x = jnp.ones([2, rows, 32])
    y = np.asarray(jax.jit(lambda key, x: dropout(key, rate, x))(jax.random.key(0), x))
    dropped = min(round(256 * rate), 255) / 256
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - dropped)], rtol=1e-6)
    # Five standard deviations of a binomial share.
    assert abs((y == 0).mean() - dropped) < 5 * (dropped * (1 - dropped) / y.size) ** 0.5
    assert abs(dropped - rate) <= (1 / 512 if rate < 0.99 else 1 / 256)


def test_neighbours_are_independent():
    """Four rows share a draw of 32 bits; what is dropped says nothing of what is dropped beside it."""
    kept = np.asarray(jax.jit(lambda key: dropout(key, 0.5, jnp.ones([4096, 8, 4])))(jax.random.key(1))) > 0
    correlation = np.corrcoef(kept.reshape(4096, 32).T.astype(float)) - np.eye(32)
    assert np.abs(correlation).max() < 5 / 4096**0.5


def test_gradients_pass_where_values_did():
    x = jax.random.normal(jax.random.key(2), (8, 40))
    values, gradient = jax.jit(
        lambda x: (dropout(jax.random.key(3), 0.3, x), jax.grad(lambda x: dropout(jax.random.key(3), 0.3, x).sum())(x))
    )(x)
    np.testing.assert_allclose(values, x * gradient, rtol=1e-6)
