"""The encoder and the MLM objective: shapes, invariances, relative buckets, ability to learn."""

import dataclasses
import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import gather_positions, positions_of
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.models import positions
from mlm_jax.models.layers import EncoderConfig, norm_layer
from mlm_jax.objectives.mae_lm import MAELM, MAELMConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.training.state import example_batch

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
VOCABULARY = standard_vocabulary(200)
ROBERTA = EncoderConfig(vocab_size=200, max_length=32, num_layers=2, width=32, num_heads=4, ffn_width=64)
MODERN = dataclasses.replace(
    ROBERTA, positions='rotary', norm='pre', mlp='geglu', bias=False, dropout=0.0, attention_dropout=0.0
)
RELATIVE = dataclasses.replace(ROBERTA, relative_buckets=32)
RECIPES = {'roberta': ROBERTA, 'modern': MODERN, 'relative': RELATIVE}


@pytest.fixture(scope='module')
def batch():
    tokens = jax.random.randint(jax.random.key(0), (4, 32), 5, 200)
    return jax.jit(Masking(VOCABULARY, ratio=0.2))(jax.random.key(1), tokens, jnp.ones_like(tokens))


@functools.cache
def initialised(config):
    module = MLM(config)
    return module, jax.jit(module.init)(jax.random.key(2), example_batch(32, 6))['params']


def test_a_norm_keeps_nothing_for_its_backward_pass_but_its_input():
    norm = norm_layer(dataclasses.replace(ROBERTA, dtype='bfloat16'), None)
    x = jax.random.normal(jax.random.key(0), (4, 8, 32), jnp.bfloat16)
    params = norm.init(jax.random.key(1), x)
    _, backward = jax.vjp(norm.apply, params, x)
    rows = [residual for residual in jax.tree.leaves(backward) if residual.ndim > 1]
    assert [(residual.shape, residual.dtype) for residual in rows] == [(x.shape, x.dtype)]


@functools.partial(jax.jit, static_argnames=('module', 'method'))  # once for all tests
def run(module, params, *args, method='__call__'):
    return module.apply({'params': params}, *args, method=method)


@pytest.mark.smoke
@pytest.mark.parametrize('recipe', RECIPES)
def test_untrained_loss_is_log_v_and_every_parameter_receives_a_gradient(recipe, batch):
    module, params = initialised(RECIPES[recipe])

    def loss(params):
        terms = module.apply({'params': params}, batch)
        return terms.loss_sum / terms.weight_sum

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(np.log(200), rel=0.02)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(grad)), path
        # Keys' biases shift all scores of a query alike: softmax does not see them.
        assert np.abs(grad).max() > 0, path


def test_scan_unroll_and_remat_change_nothing(batch):
    _, params = initialised(ROBERTA)
    rngs = {'dropout': jax.random.key(3)}

    def loss_and_grad(config):
        def loss(p):
            return MLM(config).apply({'params': p}, batch, deterministic=False, rngs=rngs).loss_sum

        return jax.jit(jax.value_and_grad(loss))(params)

    expected = loss_and_grad(ROBERTA)
    for change in (dict(scan_unroll=2), dict(remat='full'), dict(remat='matmuls')):
        actual = loss_and_grad(dataclasses.replace(ROBERTA, **change))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('change', [dict(scan_unroll=0), dict(scan_unroll=4)])
def test_remat_saves_memory_also_in_few_layers(change, batch):
    def temporary_bytes(remat):
        module = MLM(
            dataclasses.replace(ROBERTA, num_layers=4, dropout=0.0, attention_dropout=0.0, remat=remat, **change)
        )
        params = jax.eval_shape(module.init, jax.random.key(2), example_batch(32, 6))['params']
        loss = jax.grad(lambda p, b: module.apply({'params': p}, b, deterministic=False).loss_sum)
        return jax.jit(loss).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes('full') < 0.8 * temporary_bytes('none')


def test_bfloat16_is_close_to_float32_and_keeps_float32_parameters(batch):
    module, params = initialised(MODERN)
    half = MLM(dataclasses.replace(MODERN, dtype='bfloat16'))
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), batch))} == {
        jnp.dtype('float32')
    }
    full_logits, half_logits = (run(m, params, batch, method='logits') for m in (module, half))
    assert half_logits.dtype == jnp.float32
    np.testing.assert_allclose(half_logits, full_logits, atol=0.02)


@pytest.mark.parametrize('recipe', RECIPES)
def test_padding_behind_a_row_changes_nothing(recipe, batch):
    module, params = initialised(RECIPES[recipe])
    tokens, segments = batch.tokens[:, :20], batch.segments[:, :20]
    short = run(module, params, tokens, segments, method='encode')
    longer = (jnp.pad(x, ((0, 0), (0, 12))) for x in (tokens, segments))
    padded = run(module, params, *longer, method='encode')
    np.testing.assert_allclose(padded[:, :20], short, atol=1e-5)


@pytest.mark.parametrize(
    'config', [*RECIPES.values(), dataclasses.replace(MODERN, num_layers=1), dataclasses.replace(ROBERTA, remat='full')]
)
def test_the_last_layer_at_masked_positions_is_the_whole_layer_read_there(config, batch):
    module, params = initialised(config)
    weights = jax.random.normal(jax.random.key(4), (*batch.positions.shape, 200)) * batch.weights[..., None]

    def at_positions(p):
        return module.apply({'params': p}, batch, method='logits')

    def everywhere(p):
        def read(bound):
            x = gather_positions(bound.encode(batch.inputs, batch.segments), batch.positions)
            return bound.head(x, bound.encoder.token_logits)

        return module.apply({'params': p}, method=read)

    results = []
    for logits in (at_positions, everywhere):
        value, grads = jax.jit(jax.value_and_grad(lambda p, logits=logits: jnp.sum(logits(p) * weights)))(params)
        results.append((value, grads))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize('objective', ['mlm', 'mae_lm'])
def test_a_step_holds_logits_of_masked_positions_only(objective, batch):
    if objective == 'mlm':
        module, params = initialised(MODERN)
    else:
        module = MAELM(MODERN, VOCABULARY.mask_id, MAELMConfig(decoder_layers=2))
        params = jax.eval_shape(module.init, jax.random.key(2), example_batch(32, 6))['params']
    num_rows, num_masked = batch.positions.shape
    assert num_masked < batch.tokens.shape[1]
    loss = jax.grad(lambda p, b: module.apply({'params': p}, b).loss_sum)
    text = jax.jit(loss).lower(params, batch).as_text()
    shapes = {tuple(map(int, dims.split('x')[:-1])) for dims in re.findall(r'tensor<((?:\d+x)+)', text)}
    shapes -= {(MODERN.width, 200)}  # the gradient of the token embedding, on its way
    assert max(math.prod(shape) for shape in shapes if shape[-1] == 200) == num_rows * num_masked * 200


def test_logits_do_not_see_the_unused_slots(batch):
    module, params = initialised(ROBERTA)
    fewer = batch.replace(positions=batch.positions.at[:, -3:].set(32), weights=batch.weights.at[:, -3:].set(0.0))
    a, b = (run(module, params, x, method='logits') for x in (batch, fewer))
    np.testing.assert_allclose(a[:, :-3], b[:, :-3], atol=1e-6)


@pytest.mark.parametrize('recipe', ['roberta', 'modern'])  # MAE-LM overfits with the bias of relative positions
def test_a_batch_can_be_overfitted(recipe, batch, overfitted_loss):
    config = dataclasses.replace(RECIPES[recipe], width=64, dropout=0.0, attention_dropout=0.0)
    module, params = initialised(config)
    assert overfitted_loss(module, params, batch) < 0.05


def test_relative_buckets_equal_those_of_the_released_code():
    if not GOLDEN.exists():
        pytest.skip('the golden numbers are not here')
    golden = np.load(GOLDEN / 'maelm_relbuckets.npz')
    index = np.arange(512)
    for buckets, distance in ((32, 128), (64, 128), (128, 256)):
        table = positions.relative_buckets(512, buckets, distance)
        expected = golden[f'buckets_L512_bins{buckets}_max{distance}']
        assert np.array_equal(table[index[None, :] - index[:, None] + 511], expected)


def test_relative_buckets_by_their_definition():
    """Symmetric, monotonic, exact up to a quarter; the last of 32 stays unused and the last used one starts at 86."""
    table = positions.relative_buckets(512, 32, 128)
    assert table[511] == 15
    assert np.array_equal(table - 15, -(table[::-1] - 15))
    assert np.all(np.diff(table) >= 0)
    assert (table.min(), table.max()) == (0, 30)
    assert np.argmax(table == 30) - 511 == 86


def test_positions_restart_in_each_document():
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1] * 8])
    assert positions.positions_in_documents(segments).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], list(range(8))]


def test_rotary_attention_depends_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 2, 8))

    def scores(shift):
        angles = positions.rotary_turns((jnp.arange(6)[None] + shift,), 8)
        return jnp.einsum('bthd,bshd->bhts', positions.rotate(q, angles), positions.rotate(k, angles))

    np.testing.assert_allclose(scores(0), scores(17), atol=1e-4)
    assert np.abs(scores(0) - jnp.einsum('bthd,bshd->bhts', q, k)).max() > 0.1


def test_gathering_masked_positions():
    selected = jnp.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    where = positions_of(selected, 3)
    assert where.tolist() == [[1, 3, 5], [5, 5, 5], [0, 1, 2]]
    values = jnp.arange(30.0).reshape(3, 5, 2)
    assert gather_positions(values, where)[:, :, 0].tolist() == [[2, 6, 0], [0, 0, 0], [20, 22, 24]]
