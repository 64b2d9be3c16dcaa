"""What must hold of every objective, by the name under which the registry has it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.config import step_flops
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.objectives.registry import OBJECTIVES, parameters
from mlm_jax.parallel.mesh import batch_sharding, make_mesh
from mlm_jax.parallel.parameters import find
from mlm_jax.parallel.sharding import is_stacked, path_name, state_shardings
from mlm_jax.performance import collectives
from mlm_jax.training import build
from mlm_jax.training.state import example_batch

VOCABULARY = standard_vocabulary(64)
LENGTH, ROWS = 32, 8


# Encoders of other shapes than the default's: their overrides.
PLAIN = 'plain'
RECIPES: dict[str, dict[str, str]] = {
    PLAIN: {},
    'other': {
        'model.positions': 'rotary', 'model.norm': 'pre', 'model.first_norm': 'false', 'model.norm_type': 'rms_norm',
        'model.mlp': 'swiglu', 'model.num_kv_heads': '2', 'model.local_window': '9', 'model.global_every': '2',
        'model.rotary_base_local': '100', 'model.tied_head': 'false',
    },
}  # fmt: skip


def configuration(name: str, recipe: str = PLAIN):
    """A tiny model of that objective, without dropout."""
    config = config_lib.default_config()
    positions = OBJECTIVES[name].positions
    overrides = {
        'objective': name, 'vocab_size': '64', 'sequence_length': str(LENGTH), 'batch_size': str(ROWS),
        'model.num_layers': '2', 'model.width': '32', 'model.num_heads': '8', 'model.ffn_width': '64',
        'model.dropout': '0.0', 'model.attention_dropout': '0.0', 'mae_lm.decoder_layers': '2',
        'model.positions': 'learned' if 'learned' in positions else positions[-1], 'masking.mask_fraction': '1.0',
        'masking.random_fraction': '0.0', 'compilation_cache': '', **RECIPES[recipe],
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    return config_lib.resolve(config)


@functools.cache
def initialized(name: str, recipe: str = PLAIN):
    """(module, parameters away from their initial symmetry)."""
    module = build.make_objective(configuration(name, recipe), VOCABULARY)
    params = jax.jit(module.init)(jax.random.key(0), example_batch(LENGTH, 5))['params']
    noise = np.random.default_rng(1)
    return module, jax.tree.map(lambda x: x + noise.normal(0, 0.1, x.shape).astype(x.dtype), jax.device_get(params))


@functools.cache
def batch(rows: int = ROWS):
    """Rows of two documents with padding at their ends, 15 % masked."""
    tokens = jax.random.randint(jax.random.key(2), (rows, LENGTH), 5, 64)
    index = jnp.arange(LENGTH)
    segments = jnp.where(index < 14, 1, jnp.where(index < 28, 2, 0)) * jnp.ones((rows, 1), jnp.int32)
    tokens = jnp.where(segments > 0, tokens, VOCABULARY.pad_id)
    return jax.jit(Masking(VOCABULARY, ratio=0.15))(jax.random.key(3), tokens, segments)


@functools.partial(jax.jit, static_argnames=('module', 'method'))
def run(module, params, batch, method='__call__'):
    """A method of the module."""
    return module.apply({'params': params}, batch, method=method)


@functools.partial(jax.jit, static_argnames='module')
def learn(module, params, batch):
    """(LossTerms, the gradient of the sum of the loss)."""

    def loss(params):
        terms = module.apply({'params': params}, batch)
        return terms.loss_sum, terms

    gradient, terms = jax.grad(loss, has_aux=True)(params)
    return terms, gradient


def has_rules(name: str, recipe: str = PLAIN) -> None:
    """Every parameter has a sharding rule of its dimensions; and every kernel is a matrix for Muon."""
    shapes = build.state_shapes(configuration(name, recipe)).params
    state_shardings(shapes, 'fsdp_tp', make_mesh(2, 2, 2), parameters(name))

    def check(path, leaf):
        rule = find(path_name(path), parameters(name))
        if path_name(path).endswith('kernel'):
            axes = {*rule.inputs, *rule.outputs}
            assert rule.inputs and rule.outputs and axes <= set(range(leaf.ndim - is_stacked(path))), path_name(path)

    jax.tree_util.tree_map_with_path(check, shapes)


def costs_what_compiles(name: str, recipe: str = PLAIN) -> None:
    """FLOPs and slots by the spec are those of the compiled loss and gradient; an optimizer adds no products."""
    config, (module, params) = configuration(name, recipe), initialized(name, recipe)
    computed = collectives.matmul_flops(learn.lower(module, params, batch()).compile())
    assert computed == pytest.approx(step_flops.step_flops(config, slots=True), rel=0.03)
    sizes = step_flops.slot_sizes(config)
    encoded = jax.eval_shape(lambda: module.apply({'params': params}, batch(), method='encode_masked'))[0]
    assert (batch().positions.shape[1], encoded.shape[1]) == (sizes.masked, sizes.encoded)


def predicts_without_seeing(name: str) -> None:
    """Predictions do not depend on the tokens that they are of."""
    module, params = initialized(name)
    masked = batch()
    hidden = jnp.zeros((ROWS, LENGTH + 1), bool).at[jnp.arange(ROWS)[:, None], masked.positions].set(True)[:, :-1]
    others = masked.replace(tokens=jnp.where(hidden, 5 + (masked.tokens + 7) % 59, masked.tokens))
    assert not np.array_equal(masked.tokens, others.tokens)
    used = np.asarray(masked.positions) < LENGTH
    same = [np.asarray(run(module, params, b, method='logits'))[used] for b in (masked, others)]
    np.testing.assert_array_equal(*same)


def learns_nothing_from_weight_zero(name: str) -> None:
    """Rows of weight 0 add nothing to the loss, the weight or the gradient, and leave everything finite."""
    module, params = initialized(name)
    masked = batch()
    nothing = masked.replace(weights=jnp.zeros_like(masked.weights))
    terms, gradient = learn(module, params, nothing)
    assert (float(terms.loss_sum), float(terms.weight_sum)) == (0.0, 0.0)
    assert not any(g.any() for g in jax.tree.leaves(jax.device_get(gradient)))


def is_a_sum_over_rows(name: str) -> None:
    """The loss of a batch is the sum of those of its parts: rows do not know of each other."""
    module, params = initialized(name)
    whole, _ = learn(module, params, batch())
    halves = [jax.tree.map(lambda x, half=half: x[half], batch()) for half in (slice(0, 4), slice(4, 8))]
    parts = [run(module, params, half) for half in halves]
    for part in ('loss_sum', 'weight_sum'):
        assert float(getattr(whole, part)) == pytest.approx(sum(float(getattr(p, part)) for p in parts), rel=1e-5)


def ignores_padding(name: str) -> None:
    """What padding holds has no influence on the loss."""
    module, params = initialized(name)
    padding = batch().segments == 0
    other = batch().replace(tokens=jnp.where(padding, 9, batch().tokens), inputs=jnp.where(padding, 9, batch().inputs))
    terms, expected = learn(module, params, other)[0], learn(module, params, batch())[0]
    assert float(terms.loss_sum) == pytest.approx(float(expected.loss_sum), rel=1e-5)


def is_the_same_on_a_mesh(name: str, recipe: str = PLAIN) -> None:
    """Eight devices, with the state split in every way, compute the loss and the gradient of one."""
    module, params = initialized(name, recipe)
    expected = learn(module, params, batch())
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        there = jax.device_put(params, state_shardings(params, 'fsdp_tp', mesh, parameters(name)))
        rows = jax.device_put(batch(), batch_sharding(mesh))
        found = learn(module, there, rows)
    assert float(found[0].loss_sum) == pytest.approx(float(expected[0].loss_sum), rel=1e-4)
    for ours, theirs in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1.0, float(np.abs(theirs).max())))


def is_nearly_the_same_in_bfloat16(name: str) -> None:
    """The loss and the direction of each gradient are about those of float32."""
    (module, params), config = initialized(name), configuration(name)
    config.model.dtype = 'bfloat16'
    half = build.make_objective(config, VOCABULARY)
    expected, found = (learn(m, params, batch()) for m in (module, half))
    assert float(found[0].loss_sum) == pytest.approx(float(expected[0].loss_sum), rel=0.01)
    largest = max(float(np.linalg.norm(g)) for g in jax.tree.leaves(expected[1]))
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True):
        ours, theirs = (np.asarray(x, np.float64).ravel() for x in (ours, theirs))
        if np.linalg.norm(theirs) < 1e-5 * largest:  # of biases of keys, which softmax does not see: rounding alone
            continue
        cosine = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        assert cosine > 0.999, (path_name(path), cosine)


ALL = (
    has_rules, costs_what_compiles, predicts_without_seeing, learns_nothing_from_weight_zero, is_a_sum_over_rows,
    ignores_padding, is_the_same_on_a_mesh, is_nearly_the_same_in_bfloat16,
)  # fmt: skip
# What a new objective gets wrong first; in the registry, all are asked of it.
OF_NEW = (has_rules, costs_what_compiles, learns_nothing_from_weight_zero, is_a_sum_over_rows)
