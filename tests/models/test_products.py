"""Products sum in float32 in every dtype, forwards and backwards, in every shape that the models use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.models.activations import geglu
from mlm_jax.models.products import Linear, product

SIZES = dict(b=2, t=6, s=5, m=3, d=8, e=4, f=12, h=2, p=3, v=16)
# Linear layers, attention, the tied head, transitions: what the models ask for.
SPECS = [
    'btd,df->btf',
    'btd,dphe->btphe',
    'bthe,hed->btd',
    'bhte,bhse->bhts',
    'bhts,bhse->bhte',
    'bmd,vd->bmv',
    'btd,bsd->bts',
]


def operands(spec, dtype):
    """Two arrays of whole numbers, which bfloat16 holds exactly."""
    rng = np.random.default_rng(0)
    shapes = [[SIZES[c] for c in part] for part in spec.split('->')[0].split(',')]
    return [jnp.asarray(rng.integers(-3, 4, shape), dtype) for shape in shapes]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('spec', SPECS)
def test_values_and_gradients_are_those_of_einsum(spec, dtype):
    left, right = operands(spec, dtype)
    exact_left, exact_right = (np.asarray(x, np.float32) for x in (left, right))
    exact = np.einsum(spec, exact_left, exact_right)
    cotangent = np.random.default_rng(1).integers(-3, 4, exact.shape).astype(np.float32)

    @jax.jit
    def compute(left, right):
        y, backward = jax.vjp(lambda a, b: product(spec, a, b, jnp.float32), left, right)
        return y, *backward(jnp.asarray(cotangent))

    y, d_left, d_right = compute(left, right)
    of_left, of_right = spec.split('->')[0].split(',')
    output = spec.split('->')[1]
    assert (y.dtype, d_left.dtype, d_right.dtype) == (jnp.float32, dtype, dtype)
    np.testing.assert_array_equal(y, exact)
    for got, wanted in (
        (d_left, np.einsum(f'{output},{of_right}->{of_left}', cotangent, exact_right)),
        (d_right, np.einsum(f'{of_left},{output}->{of_right}', exact_left, cotangent)),
    ):
        np.testing.assert_array_equal(got, jnp.asarray(wanted, dtype))


def test_long_sums_lose_nothing_in_bfloat16():
    ones = jnp.ones([1, 4096], jnp.bfloat16)

    @jax.jit
    def compute(left, right):
        return product('ab,cb->ac', left, right), jax.grad(lambda w: product('ba,bc->ac', left, w).sum())(right)

    y, _ = compute(ones, ones)
    assert float(y[0, 0]) == 4096  # a sum in bfloat16 would stay at 256


def test_a_linear_layer_is_that_of_flax():
    import flax.linen as nn

    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    ours = Linear((3, 4), stddev=0.5)
    theirs = nn.DenseGeneral((3, 4), kernel_init=nn.initializers.normal(0.5))
    params = ours.init(jax.random.key(1), x)
    for ours_leaf, theirs_leaf in zip(*(jax.tree.leaves(m.init(jax.random.key(1), x)) for m in (ours, theirs))):
        np.testing.assert_array_equal(ours_leaf, theirs_leaf)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_bias_is_summed_in_float32():
    layer = Linear((1,), dtype='bfloat16')
    x = jnp.zeros([4096, 8], jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda p: layer.apply(p, x).astype(jnp.float32).sum()))(params)
    assert float(gradient['params']['bias'][0]) == 4096


def test_behind_an_activation_a_layer_keeps_the_inputs_of_the_activation_alone():
    gate, up = jax.random.normal(jax.random.key(0), (2, 7, 8))
    layer = Linear((4,), activation=geglu)
    params = layer.init(jax.random.key(1), gate, up)

    y, backward = jax.vjp(layer.apply, params, gate, up)
    np.testing.assert_allclose(y, Linear((4,)).apply(params, geglu(gate, up)), rtol=1e-6)
    rows = [residual for residual in jax.tree.leaves(backward) if residual.shape[0] == 7]
    assert len(rows) == 2 and all(any((kept == x).all() for kept in rows) for x in (gate, up))
    plain = jax.vjp(lambda params, *inputs: Linear((4,)).apply(params, geglu(*inputs)), params, gate, up)[1]
    for one, other in zip(jax.tree.leaves(backward(y)), jax.tree.leaves(plain(y)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
