"""Sketched inner products: unbiased, of the variance that is promised, and exact where nothing is lost."""

import jax
import numpy as np

from mlm_jax.analysis.sketch import BLOCK_CHUNKS, sketch

SIZE = 64
jitted = jax.jit(lambda gradient, key: sketch(gradient, key, SIZE))


def test_inner_products_are_unbiased_and_vary_as_promised():
    """Over arrays of several blocks, one chunk and less than one; a column much larger than the others."""
    rng = np.random.default_rng(0)
    shapes = {'blocks': (BLOCK_CHUNKS * SIZE * 2 + 5,), 'matrix': (40, 16), 'scalar': ()}
    g, h = ({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(2))
    g['matrix'][:, 3] *= 300
    h['matrix'][:, 3] *= 300
    flat_g, flat_h = (np.concatenate([np.ravel(x[name]) for name in sorted(x)]).astype(np.float64) for x in (g, h))
    pairs = jax.jit(jax.vmap(lambda key: (sketch(g, key, SIZE), sketch(h, key, SIZE))))
    a, b = (np.asarray(x, np.float64) for x in pairs(jax.random.split(jax.random.key(0), 400)))
    for x, y, u, v in ((flat_g, flat_h, a, b), (flat_g, flat_g, a, a)):
        estimates = (u * v).sum(1)
        promised = ((x @ x) * (y @ y) + (x @ y) ** 2) / SIZE
        assert abs(estimates.mean() - x @ y) < 4 * np.sqrt(promised / len(estimates))
        assert estimates.var() < 1.4 * promised


def test_a_gradient_that_fits_loses_nothing():
    x, y = np.random.default_rng(0).normal(size=(2, SIZE)).astype(np.float32)
    a, b = (np.asarray(jitted(z, jax.random.key(1))) for z in (x, y))
    np.testing.assert_allclose(a @ b, x @ y, rtol=1e-4)


def test_equal_arrays_are_signed_independently():
    """Else the sketch of a difference between two layers of one shape would not tell them apart."""
    x, nothing = np.ones(SIZE, np.float32), np.zeros(SIZE, np.float32)
    a, b = (np.asarray(jitted(pair, jax.random.key(0))) for pair in ([x, nothing], [nothing, x]))
    assert abs(a @ b) < SIZE / 2
