"""One update: the same on any mesh, under any preset, with any number of microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.synthetic import SyntheticRows
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.parallel.mesh import batch_sharding, make_mesh
from mlm_jax.parallel.sharding import state_shardings
from mlm_jax.performance import collectives
from mlm_jax.training import build
from mlm_jax.training.state import create_state, num_parameters
from mlm_jax.training.step import jit_train_step

VOCABULARY = standard_vocabulary(64)


@pytest.fixture(scope='module')
def tokens():
    """16 rows of which some hold far fewer tokens than others, so that masked counts are unequal."""
    rows = SyntheticRows(100, 32, VOCABULARY).read(np.arange(16))
    for i, row in enumerate(rows):
        row[32 - 2 * i :] = VOCABULARY.pad_id
        row[: max(1, 32 - 2 * i)][-1] = VOCABULARY.sep_id
        row[0] = VOCABULARY.cls_id
    return rows


def make_run(config, shape):
    """The run of a configuration, and a mesh of this shape."""
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    return build.make_run(config_lib.completed(config), VOCABULARY, num_rows=160), mesh


FIRST_STATES = {}  # by the number of layers, on the host


def started(config, shape):
    """`make_run`, and the first state there: that which `create_state` makes on any mesh, as `updated` shows."""
    (run, mesh), num_layers = make_run(config, shape), config.model.num_layers
    if num_layers not in FIRST_STATES:
        FIRST_STATES[num_layers] = jax.device_get(jax.jit(run.init)())
    state = FIRST_STATES[num_layers]
    return run, mesh, jax.device_put(state, state_shardings(state, config.sharding, mesh, run.init.parameters))


def updated(config, tokens, shape=(1, 1, 1)):
    """Parameters and metrics after two updates on a mesh, of a state that was created there."""
    run, mesh = make_run(config, shape)
    with jax.set_mesh(mesh):
        state = create_state(run.init, mesh, config.sharding)
        step = jax.jit(run.train_step, donate_argnums=0)
        batch = jax.device_put(tokens, batch_sharding(mesh))
        history = []
        for _ in range(2):
            state, metrics = step(state, batch)
            history.append(jax.device_get(metrics))
    return jax.device_get(state.params), history


def measured(config, tokens, shape, names=('loss', 'grad_norm', 'masked_ratio')):
    """Metrics of the first step of the first epoch and of the second, for the first parameters.

    Nothing of the update that these metrics do not need is compiled.
    """
    run, mesh, state = started(config, shape)
    with jax.set_mesh(mesh):
        metrics = jax.jit(lambda state, batch: {name: run.train_step(state, batch)[1][name] for name in names})
        batch = jax.device_put(tokens, batch_sharding(mesh))
        steps = (state.step, jax.device_put(np.int32(10), state.step.sharding))
        return [jax.device_get(metrics(state.replace(step=step), batch)) for step in steps]


def assert_close(a, b, rtol=1e-5):
    """Relative to the largest entry of each tensor."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert np.abs(x - y).max() <= rtol * max(np.abs(x).max(), 1e-3), path


def sgd_like(config):
    """Adam's first updates are ±lr whatever the gradient, and would hide and magnify errors of the gradient."""
    overrides = {'optimizer.eps': '1.0', 'optimizer.learning_rate': '1.0', 'schedule.name': 'constant'}
    config_lib.apply_overrides(config, {**overrides, 'schedule.warmup_steps': '0'})
    return config


@pytest.fixture
def sgd_config(tiny_config):
    return sgd_like(tiny_config)


@pytest.fixture(scope='module')
def reference(make_tiny_config, tokens):
    """Parameters and metrics on one device."""
    return updated(sgd_like(make_tiny_config()), tokens)


# Rows on both axes under `dp`: test_several_masks… below.
@pytest.mark.parametrize(('preset', 'mesh'), [('dp', (8, 1, 1)), ('fsdp', (2, 4, 1)), ('fsdp_tp', (2, 2, 2))])
def test_an_update_is_the_same_on_one_and_on_eight_devices(sgd_config, tokens, reference, preset, mesh):
    sgd_config.sharding = preset
    params, history = updated(sgd_config, tokens, mesh)
    assert_close(reference[0], params)
    for a, b in zip(reference[1], history, strict=True):
        assert a['loss'][0] == pytest.approx(b['loss'][0], rel=1e-5)
        assert a['loss'][1] == b['loss'][1], 'the same tokens are masked'
        assert a['masked_ratio'] == b['masked_ratio']


def test_two_slices_of_four_devices_compute_what_one_device_does(sgd_config, tokens, reference, monkeypatch):
    """And so what one slice of eight does, which the test above compares with one device."""
    monkeypatch.setattr(mesh_lib, 'slice_of', lambda device: device.id % 2)
    sgd_config.sharding = 'fsdp'
    found = measured(sgd_config, tokens, (2, 4, 1), ['loss'])[0]
    np.testing.assert_allclose(found['loss'], reference[1][0]['loss'], rtol=1e-5)


def test_masks_are_the_same_bits_in_any_number_of_slices(tiny_config, tokens, monkeypatch):
    masking = build.make_masking(config_lib.completed(tiny_config), VOCABULARY, num_rows=160)

    def draw(tokens):
        return masking.draw(jax.random.key(0), tokens, segment_ids(tokens, VOCABULARY), jnp.int32(0))

    expected = jax.device_get(jax.jit(draw)(tokens))
    for num_slices in (1, 2, 4):
        monkeypatch.setattr(mesh_lib, 'slice_of', lambda device, n=num_slices: device.id % n)
        mesh = make_mesh(4, 2, 1)
        with jax.set_mesh(mesh):
            found = jax.device_get(jax.jit(draw)(jax.device_put(tokens, batch_sharding(mesh))))
        jax.tree.map(np.testing.assert_array_equal, expected, found)


@pytest.mark.parametrize('masking', [dict(strategy='fully_explored'), dict(strategy='least_masked', unit='ngram')])
def test_several_masks_of_a_text_and_masks_by_visit_are_the_same_on_any_mesh_in_any_parts(tiny_config, tokens, masking):
    tiny_config.model.num_layers = 1
    tiny_config.masking.update(masking)
    tiny_config.masking.fully_explored.segments = 4
    history = measured(tiny_config, tokens, (1, 1, 1))
    views = 4 if masking['strategy'] == 'fully_explored' else 1
    eligible = (tokens > 4).sum()
    assert history[0]['masked_ratio'][1] == views * eligible
    if views > 1:
        assert history[0]['loss'][1] == eligible, 'every token is predicted once'
    tiny_config.num_microbatches = 2
    for a, b in zip(history, measured(tiny_config, tokens, (4, 2, 1)), strict=True):
        assert a['loss'][0] == pytest.approx(b['loss'][0], rel=1e-4)
        assert a['grad_norm'][0] == pytest.approx(b['grad_norm'][0], rel=1e-4)
        assert a['loss'][1] == b['loss'][1]
        assert a['masked_ratio'] == b['masked_ratio']


def test_an_update_is_the_same_with_microbatches_of_unequal_weight(sgd_config, tokens, reference):
    sgd_config.num_microbatches = 4
    params, history = updated(sgd_config, tokens, (2, 1, 1))
    assert_close(reference[0], params)
    for a, b in zip(reference[1], history, strict=True):
        np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-5)
        np.testing.assert_allclose(a['accuracy'], b['accuracy'])


def test_dropout_is_the_same_on_one_and_on_eight_devices(tiny_config, tokens):
    tiny_config.model.dropout = tiny_config.model.attention_dropout = 0.1
    tiny_config.model.num_layers, tiny_config.sharding = 1, 'fsdp'
    one, eight = (measured(tiny_config, tokens, shape, ['loss']) for shape in ((1, 1, 1), (2, 4, 1)))
    for a, b in zip(one, eight, strict=True):
        assert a['loss'][0] == pytest.approx(b['loss'][0], rel=1e-5)


# `fsdp` splits the table of tokens and four kernels of each of two layers. Where they are gathered by layer, gradients
# are scattered in each of two microbatches; the compiler gathers the same weights for both at once.
@pytest.mark.parametrize(
    ('gather', 'expected'),
    [
        ('step', {'all-gather': 5, 'reduce-scatter': 5}),
        ('layer', {'all-gather': 1 + 2 * 4, 'reduce-scatter': 1 + 2 * 2 * 4}),
    ],
)
def test_gradients_are_scattered_and_the_update_is_that_of_one_device(sgd_config, tokens, reference, gather, expected):
    sgd_config.sharding, sgd_config.num_microbatches, sgd_config.fsdp_gather = 'fsdp', 2, gather
    run, mesh, state = started(sgd_config, (2, 4, 1))
    with jax.set_mesh(mesh):
        batch = jax.device_put(tokens, batch_sharding(mesh))
        step = jit_train_step(run.train_step, state, mesh).lower(state, batch).compile()
        for before in reference[1]:
            state, metrics = step(state, batch)
            assert metrics['loss'][0] == pytest.approx(before['loss'][0], rel=1e-6)
            assert metrics['loss'][1] == before['loss'][1]
    assert_close(reference[0], jax.device_get(state.params))
    found = collectives.describe_collectives(step)
    assert {name: found[name][0] for name in expected} == expected
    # What is left: parameters that are not split, a quarter of those that are, and scalars.
    assert found['all-reduce'][1] < 0.5 * 4 * num_parameters(state.params)


@pytest.fixture(scope='module')
def without_decay(make_tiny_config):
    """The first state, the jitted step, and the learning rate, which rises for four steps."""
    config = make_tiny_config()
    config.model.num_layers, config.optimizer.weight_decay = 1, 0.0
    config_lib.apply_overrides(config, {'schedule.warmup_steps': '4'})
    run = build.make_run(config_lib.completed(config), VOCABULARY, num_rows=160)
    return jax.jit(run.init)(), jax.jit(run.train_step), run.learning_rate


def test_an_update_that_is_not_finite_leaves_the_state_as_it_was(without_decay, tokens):
    state, step, _ = without_decay
    broken = jax.tree.map(lambda x: x, state.params)
    broken['head']['bias'] = broken['head']['bias'].at[3].set(jnp.inf)
    state = state.replace(params=broken)
    new, metrics = step(state, tokens)
    assert float(metrics['nonfinite'][0]) == 1.0
    assert int(new.step) == 1
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(new.params), strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(new.opt_state), strict=True):
        assert np.array_equal(a, b)


def test_a_batch_of_padding_alone_changes_nothing_and_is_finite(without_decay):
    state, step, _ = without_decay
    new, metrics = step(state, np.full((16, 32), VOCABULARY.pad_id, np.int32))
    assert float(metrics['nonfinite'][0]) == 0.0
    assert float(metrics['loss'][1]) == 0.0
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(new.params), strict=True):
        assert np.array_equal(a, b)


def test_an_update_that_is_not_finite_is_not_applied_where_the_gradient_is(tiny_config, tokens):
    """Adam without ε divides 0 by 0 for rows of the embedding that no text has met."""
    tiny_config.model.num_layers = 1
    tiny_config.optimizer.update(eps=0.0, b2=1.0)
    run = build.make_run(config_lib.completed(tiny_config), VOCABULARY, num_rows=160)
    state = jax.jit(run.init)()
    new, metrics = jax.jit(run.train_step)(state, tokens)
    assert np.isfinite(metrics['loss'][0]) and np.isfinite(metrics['grad_norm'][0])
    assert float(metrics['nonfinite'][0]) == 1.0
    for a, b in zip(jax.tree.leaves((state.params, state.opt_state)), jax.tree.leaves((new.params, new.opt_state))):
        assert np.array_equal(a, b)


def test_a_skipped_update_does_not_delay_the_learning_rate(without_decay, tokens):
    """After three steps without an update, the fourth has the rate of the fourth: as the log says."""
    state, step, learning_rate = without_decay
    late = state.replace(step=jnp.int32(3))
    new = [step(s, tokens)[0].params['head']['bias'] for s in (state, late)]
    changes = [float(jnp.abs(x - state.params['head']['bias']).max()) for x in new]
    assert changes[0] == pytest.approx(float(learning_rate(0)), rel=0.01)
    assert changes[1] == pytest.approx(float(learning_rate(3)), rel=0.01) == pytest.approx(4 * changes[0], rel=0.02)
