"""Optimizers against their definitions; each layer of a stack is a tensor of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.training import optimizers
from mlm_jax.training.schedules import make_schedule


def optimizer_config(name, **changes):
    config = config_lib.default_config().optimizer
    config.update({'name': name, 'learning_rate': 0.01, 'weight_decay': 0.1, 'clip_norm': 0.0, **changes})
    return config


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        'encoder': {
            'layers': {'mlp': {'up': {'kernel': rng.normal(size=(3, 8, 4)), 'bias': rng.normal(size=(3, 4))}}},
            'token_embedding': {'embedding': rng.normal(size=(10, 8))},
        }
    }


def gradients(params, seed):
    rng = np.random.default_rng(seed)
    # Layers of very different scale: a norm over the whole stack would show.
    return jax.tree.map(
        lambda p: rng.normal(size=p.shape) * 10.0 ** np.arange(p.shape[0]).reshape(-1, *[1] * (p.ndim - 1)), params
    )


def run(name, params, num_steps=3, **changes):
    optimizer = optimizers.make_optimizer(optimizer_config(name, **changes), lambda step: jnp.ones([]))
    params = jax.tree.map(jnp.float32, params)
    state = optimizer.init(params)
    for seed in range(num_steps):
        grads = jax.tree.map(jnp.float32, gradients(params, seed))
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def unstacked(params):
    """Each layer as a model of its own, without a stack."""
    layers = params['encoder']['layers']
    return [
        {
            'encoder': {
                'layer': jax.tree.map(lambda x, i=i: x[i], layers),
                'token_embedding': params['encoder']['token_embedding'],
            }
        }
        for i in range(3)
    ]


@pytest.mark.parametrize('name', ['adamw', 'lamb', 'stable_adamw'])
def test_a_stack_is_updated_like_its_layers_one_by_one(name, params):
    stacked = run(name, params)
    for i, single in enumerate(unstacked(params)):
        optimizer = optimizers.make_optimizer(optimizer_config(name), lambda step: jnp.ones([]))
        single = jax.tree.map(jnp.float32, single)
        state = optimizer.init(single)
        for seed in range(3):
            grads = jax.tree.map(jnp.float32, unstacked(gradients(params, seed))[i])
            updates, state = optimizer.update(grads, state, single)
            single = jax.tree.map(jnp.add, single, updates)
        expected = single['encoder']['layer']['mlp']['up']['kernel']
        np.testing.assert_allclose(
            stacked['encoder']['layers']['mlp']['up']['kernel'][i], expected, rtol=2e-5, atol=1e-6
        )


def test_stable_adamw_equals_its_definition(params):
    """The update in float64, tensor by tensor, from the formulas."""
    result = run('stable_adamw', params, num_steps=4)['encoder']['token_embedding']['embedding']
    p = params['encoder']['token_embedding']['embedding']
    m = v = np.zeros_like(p)
    for t in range(1, 5):
        g = gradients(params, t - 1)['encoder']['token_embedding']['embedding']
        beta1, beta2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (0.9, 0.98))
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        rate = 0.01 / max(1.0, np.sqrt(np.mean(g**2 / np.maximum(v, 1e-6**2))))
        p = p * (1 - rate / 0.01 * 0.1) - rate * m / (np.sqrt(v) + 1e-6)
    np.testing.assert_allclose(result, p, rtol=1e-5, atol=1e-6)


def test_muon_makes_the_update_of_each_matrix_orthogonal(params):
    before = jax.tree.map(jnp.float32, params)
    after = run('muon', params, num_steps=1)
    update = np.array(
        after['encoder']['layers']['mlp']['up']['kernel'] - before['encoder']['layers']['mlp']['up']['kernel']
    )
    update += 0.01 * 0.1 * np.asarray(before['encoder']['layers']['mlp']['up']['kernel'])  # weight decay
    for layer in update:
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() / singular.min() < 2.0, 'Newton–Schulz brings all singular values near one'
        assert np.sqrt((layer**2).mean()) == pytest.approx(0.2 * 0.01, rel=0.3), 'as large as an update of Adam'


def test_weight_decay_spares_biases_and_norms_unless_told(params):
    zero = jax.tree.map(np.zeros_like, params)
    for mask, decays in (('matrices', False), ('all', True)):
        optimizer = optimizers.make_optimizer(optimizer_config('adamw', decay_mask=mask), lambda step: jnp.ones([]))
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        up = updates['encoder']['layers']['mlp']['up']
        assert np.abs(up['kernel']).max() > 0
        assert (np.abs(up['bias']).max() > 0) == decays


def test_clipping_bounds_the_global_norm(params):
    optimizer = optimizers.make_optimizer(optimizer_config('adamw', clip_norm=1e-9, eps=1.0), lambda step: jnp.ones([]))
    grads, zeros = jax.tree.map(jnp.float32, gradients(params, 0)), jax.tree.map(lambda p: jnp.zeros(p.shape), params)
    updates, _ = optimizer.update(grads, optimizer.init(zeros), zeros)
    assert max(float(np.abs(u).max()) for u in jax.tree.leaves(updates)) < 1e-10


@pytest.mark.parametrize('name', ['linear', 'cosine', 'wsd', 'constant'])
def test_schedules_rise_to_one_and_fall_to_zero(name):
    schedule = make_schedule(name, total_steps=100, warmup_steps=10, decay_steps=20)
    values = np.array([float(schedule(step)) for step in range(101)])
    assert values[0] == pytest.approx(0.1), 'the first update already learns'
    np.testing.assert_allclose(np.diff(values[:10]), 0.1, atol=1e-6)
    assert values.max() == pytest.approx(1.0)
    assert np.all(np.diff(values[10:]) <= 1e-7)
    assert values[100] == pytest.approx(1.0 if name == 'constant' else 0.0, abs=1e-6)
    if name == 'wsd':
        assert values[80] == pytest.approx(1.0)
        assert values[85] == pytest.approx(1 - np.sqrt(0.25))
    if name == 'cosine':
        assert values[55] == pytest.approx(0.5)
