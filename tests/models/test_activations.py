"""Activations: their values, their slopes, and what they keep."""

import jax
import numpy as np

from mlm_jax.models.activations import geglu, gelu


def test_they_are_the_exact_ones_and_keep_only_their_inputs():
    x, up = jax.random.normal(jax.random.key(4), (2, 16, 64)) * 3

    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    slope = jax.grad(lambda x: gelu(x).sum())(x)
    np.testing.assert_allclose(slope, jax.grad(lambda x: jax.nn.gelu(x, approximate=False).sum())(x), atol=2e-6)

    _, backward = jax.vjp(geglu, x, up)
    assert sum(residual.nbytes for residual in jax.tree.leaves(backward)) == x.nbytes + up.nbytes
