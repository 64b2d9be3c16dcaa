"""Dropout: how much it drops, and what it does to the mean, to neighbours and to gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p
from jax.sharding import PartitionSpec

from mlm_jax.config.model_checks import ROUNDED_TO_ZERO, problem_of_dropout
from mlm_jax.models.dropout import bits_of_rows, dropout
from mlm_jax.parallel.mesh import BATCH_AXES, make_mesh


@pytest.mark.parametrize('rate, rows', [(0.1, 1000), (0.5, 1001), (0.1, 3), (0.999, 100)])
def test_the_share_that_is_dropped_and_the_scale_of_the_rest(rate, rows):
    x = jnp.ones([2, rows, 32])
    y = np.asarray(jax.jit(lambda key, x: dropout(key, rate, x))(jax.random.key(0), x))
    dropped = min(round(256 * rate), 255) / 256
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - dropped)], rtol=1e-6)
    # Five standard deviations of a binomial share.
    assert abs((y == 0).mean() - dropped) < 5 * (dropped * (1 - dropped) / y.size) ** 0.5
    assert abs(dropped - rate) <= (1 / 512 if rate < 0.99 else 1 / 256)


def test_rates_that_would_drop_nothing_are_refused():
    x = jnp.ones([64, 8, 32])
    for rate in (1e-9, ROUNDED_TO_ZERO, 1.01 * ROUNDED_TO_ZERO, 0.002):
        assert bool((dropout(jax.random.key(0), rate, x) > 0).all()) == bool(problem_of_dropout('model.dropout', rate))
    assert not problem_of_dropout('model.dropout', 0.0)


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


@pytest.mark.parametrize('shape', [(3, 5), (1,), (2, 1, 7)])
def test_bits_of_rows_are_those_of_the_whole_array(shape):
    key, rows = jax.random.key(4), np.array([7, 0, 3], np.uint32)
    np.testing.assert_array_equal(bits_of_rows(key, rows, shape), jax.random.bits(key, (8, *shape), jnp.uint32)[rows])


def test_bits_beyond_two_to_the_32_are_those_of_jax():
    """The index of a value needs 64 bits: row 70,000 of 70,001, of 2¹⁶ values each."""
    row, size = 70_000, 2**16
    high, low = divmod(row * size + 5, 2**32)
    bits = threefry2x32_p.bind(*jax.random.key_data(jax.random.key(5)), *(jnp.uint32([x]) for x in (high, low)))
    assert bits_of_rows(jax.random.key(5), jnp.uint32([row]), (size,))[0, 5] == (bits[0] ^ bits[1])[0]


@pytest.mark.parametrize('shape', [(16, 9, 4), (8, 2, 3, 5)])
def test_devices_with_rows_of_their_own_drop_what_one_device_drops(shape):
    def drop(x):
        return dropout(jax.random.key(6), 0.3, x)

    mesh, rows = make_mesh(2, 2, 2), PartitionSpec(BATCH_AXES)
    local = jax.jit(jax.shard_map(drop, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    np.testing.assert_array_equal(local(jnp.ones(shape)), jax.jit(drop)(jnp.ones(shape)))
