"""Optimizers against their definitions; each layer of a stack is a tensor of its own."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.config import possible_values
from mlm_jax.objectives.registry import parameters
from mlm_jax.parallel.sharding import is_stacked, path_name
from mlm_jax.training import build, optimizers
from mlm_jax.training.learning_rate import make_schedule

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


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


@pytest.mark.parametrize('mask', ['matrices', 'all'])
def test_a_bias_that_begins_at_zero_learns_with_lamb(mask):
    optimizer = optimizers.make_optimizer(
        optimizer_config('lamb', weight_decay=0.0, decay_mask=mask), lambda step: jnp.ones([])
    )
    params = {'encoder': {'final_norm': {'bias': jnp.zeros(4)}}}
    state = optimizer.init(params)
    for _ in range(100):
        grads = jax.tree.map(lambda p: p - 0.5, params)
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params['encoder']['final_norm']['bias'], 0.5, atol=0.1)


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
    with jax.transfer_guard('disallow'):
        assert not isinstance(schedule(3), jax.Array), 'in NumPy, it waits for no device'
    np.testing.assert_allclose(values, jax.jit(schedule)(jnp.arange(101)), rtol=1e-6, atol=1e-7)
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


@pytest.mark.parametrize(('recipe', 'name', 'expected'), [('roberta', 'adamw', 0.01), ('modern', 'stable_adamw', 1e-5)])
def test_each_recipe_has_the_weight_decay_of_its_optimizer(recipe, name, expected, params):
    """ModernBERT's 1e-5 is the share of a weight that an update removes; AdamW's 0.01 is a hundredth of its rate."""
    config = config_lib.default_config()
    config_lib.apply_recipe(config, recipe)
    assert config.optimizer.name == name and config_lib.decided(config).optimizer.weight_decay == expected
    optimizer = optimizers.make_optimizer(config.optimizer, lambda step: jnp.ones([]))
    params = jax.tree.map(jnp.float32, params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    share = expected if name == 'stable_adamw' else expected * config.optimizer.learning_rate
    kernel, update = (tree['encoder']['layers']['mlp']['up']['kernel'] for tree in (params, updates))
    np.testing.assert_allclose(update, -share * kernel, rtol=1e-5)


def test_every_optimizer_has_a_weight_decay_and_one_given_comes_first():
    assert config_lib.WEIGHT_DECAYS.keys() == set(possible_values.CHOICES['optimizer.name'])
    assert config_lib.weight_decay(optimizer_config('stable_adamw', weight_decay=0.0)) == 0.0


@pytest.mark.parametrize('recipe', ['roberta', 'modern'])
def test_mae_lm_decays_norms_in_its_own_recipe_alone(recipe):
    config = config_lib.load(f'{CONFIGS}/mae_lm.py:base,recipe={recipe}')
    assert config.optimizer.decay_mask == ('all' if recipe == 'roberta' else 'matrices')


def test_muon_decays_what_the_mask_says():
    norm = {'encoder': {'final_norm': {'scale': np.ones(4)}, 'token_embedding': {'embedding': np.ones((3, 4))}}}
    for mask, decays in (('matrices', False), ('all', True)):
        optimizer = optimizers.make_optimizer(optimizer_config('muon', decay_mask=mask), lambda step: jnp.ones([]))
        updates, _ = optimizer.update(jax.tree.map(np.zeros_like, norm), optimizer.init(norm), norm)
        assert (np.abs(updates['encoder']['final_norm']['scale']).max() > 0) == decays
        np.testing.assert_allclose(updates['encoder']['token_embedding']['embedding'], -0.01 * 0.1, rtol=1e-5)


def test_the_adam_of_muon_has_the_moments_and_the_epsilon_of_the_configuration():
    """The first update looks ahead (Nesterov): (β₁ (1 − β₁) g / (1 − β₁²) + g) / (√v̂ + ε)."""
    table = {'encoder': {'token_embedding': {'embedding': jnp.zeros((2, 2))}}}
    grads = {'encoder': {'token_embedding': {'embedding': jnp.full((2, 2), 1e-6)}}}
    b1 = 0.8
    optimizer = optimizers.make_optimizer(optimizer_config('muon', b1=b1, eps=1e-4), lambda step: jnp.ones([]))
    updates, _ = optimizer.update(grads, optimizer.init(table), table)
    direction = b1 * (1 - b1) * 1e-6 / (1 - b1**2) + 1e-6
    expected = -0.01 * direction / (1e-6 + 1e-4)
    np.testing.assert_allclose(updates['encoder']['token_embedding']['embedding'], expected, rtol=1e-4)


def test_the_momentum_of_muon_is_a_key(params):
    changed = run('muon', params, momentum=0.5)['encoder']
    usual, default = (run('muon', params, **m)['encoder'] for m in (dict(momentum=0.95), {}))
    assert np.array_equal(default['layers']['mlp']['up']['kernel'], usual['layers']['mlp']['up']['kernel'])
    assert not np.array_equal(default['layers']['mlp']['up']['kernel'], changed['layers']['mlp']['up']['kernel'])
    assert np.array_equal(default['token_embedding']['embedding'], changed['token_embedding']['embedding'])


# As Muon sees it: matrices (layers, and q, k, v), inputs, outputs. The width is 32, that of the decoder 16; 4 heads.
MATRICES = {
    'encoder/layers/attention/qkv/kernel': (2 * 3, 32, 32),
    'encoder/layers/mlp/up/kernel': (2, 32, 64),
    'decoder/project/kernel': (1, 32, 16),
    'decoder/last_layer/attention/out/kernel': (1, 16, 16),
    'head/dense/kernel': None,
    'widen/kernel': (1, 16, 32),
    'transitions/query/kernel': (1, 64, 32),
    'transitions/key/kernel': (1, 64, 32),
    'transitions/gate/kernel': (1, 64, 4),
}


def params_of(objective):
    config = config_lib.load(f'{CONFIGS}/{objective}.py:tiny')
    config_lib.apply_overrides(config, {
        'vocab_size': '64', 'sequence_length': '16', 'model.width': '32', 'model.num_heads': '4',
        'model.ffn_width': '64', 'mae_lm.decoder_width': '16',
    })  # fmt: skip
    return build.state_shapes(config_lib.resolve(config)).params


@pytest.mark.parametrize('objective', possible_values.CHOICES['objective'])
def test_muon_has_every_matrix_inside_the_network(objective):
    """Tables, where rows are looked up, and biases are Adam's; nothing else is."""
    params = params_of(objective)
    dimensions = optimizers.muon_dimensions(params, parameters(objective))
    found = {}

    def look(path, leaf, axes):
        name = path_name(path)
        is_matrix = leaf.ndim - is_stacked(path) >= 2 and name.rsplit('/', 1)[-1] not in ('embedding', 'bias')
        assert (axes is not None) == is_matrix, name
        if is_matrix:
            sizes = [int(np.prod([leaf.shape[a] for a in part])) for part in axes]
            found[name] = (leaf.size // (sizes[0] * sizes[1]), *sizes)

    jax.tree_util.tree_map_with_path(look, params, dimensions)
    assert found
    for name, sizes in found.items():
        assert MATRICES.get(name) in (None, sizes), name
    own = {'mlm': set(), 'mae_lm': {'decoder/project/kernel', 'widen/kernel'}}
    assert own.get(objective, {f'transitions/{part}/kernel' for part in ('query', 'key', 'gate')}) <= found.keys()


def test_a_kernel_that_muon_does_not_know_is_named():
    with pytest.raises(ValueError, match='axes of decoder/new/kernel'):
        optimizers.muon_dimensions({'decoder': {'new': {'kernel': np.zeros((2, 2))}}})


@pytest.mark.parametrize('name', possible_values.CHOICES['optimizer.name'])
def test_the_learning_rate_goes_by_the_step_that_is_given(name, params):
    """An optimizer that has made fewer updates than the run has steps is no step behind."""
    config = optimizer_config(name, weight_decay=0.0)
    optimizer = optimizers.make_optimizer(config, lambda step: 1.0 / (1.0 + step))
    params, grads = (jax.tree.map(jnp.float32, tree) for tree in (params, gradients(params, 0)))
    state = optimizer.init(params)
    first, fifth = (optimizer.update(grads, state, params, step=jnp.int32(step))[0] for step in (0, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 5 * b, rtol=1e-5), first, fifth)
