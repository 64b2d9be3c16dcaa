"""The moving average of the parameters: a recursion over them, and nothing where it is not asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError, slice_fitting
from mlm_jax.data.synthetic import SyntheticRows
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel import sharding
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.training import build, moving_average, resuming
from mlm_jax.training.state import TrainState, abstract_state, starting_from

VOCABULARY = standard_vocabulary(64)
DECAY = 0.15  # larger than (1 + t) / (10 + t) for the first update, and smaller for the second


def make_run(config):
    return build.make_run(config_lib.completed(config), VOCABULARY, num_rows=160)


def with_average(config, decay=DECAY):
    config.model.num_layers, config.ema.decay = 1, decay
    return config


def test_it_is_the_recursion_over_the_parameters_and_a_skipped_update_leaves_it(tiny_config):
    run = make_run(with_average(tiny_config))
    tokens = SyntheticRows(100, 32, VOCABULARY).read(np.arange(16))
    state, step = jax.jit(run.init)(), jax.jit(run.train_step, donate_argnums=0)
    expected = jax.tree.map(np.float64, jax.device_get(state.params))
    assert jax.tree.all(jax.tree.map(np.array_equal, state.ema, state.params)), 'it begins as a copy'
    for t in range(3):
        state, _ = step(state, tokens)
        decay = min(DECAY, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, jax.device_get(state.params))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7), state.ema, expected)
    before = jax.device_get(state.ema)
    broken = jax.tree.map(jnp.copy, state.params)
    broken['head']['bias'] = broken['head']['bias'].at[3].set(jnp.inf)
    state, metrics = step(state.replace(params=broken), tokens)
    assert float(metrics['nonfinite'][0]) == 1.0 and int(state.step) == 4
    jax.tree.map(np.testing.assert_array_equal, before, state.ema)


def test_a_decay_close_to_1_keeps_its_digits():
    """1 − 0.9999 in float32 would be wrong by two parts in ten thousand."""
    (moved,) = jax.tree.leaves(
        moving_average.updated([jnp.zeros(())], [jnp.ones(())], jnp.asarray(True), jnp.int32(10**7), 0.9999)
    )
    assert float(moved) == pytest.approx(1e-4, rel=1e-6)


def test_without_it_the_state_is_what_it_was(tiny_config):
    tiny_config.model.num_layers = 1
    without, with_one = (
        jax.eval_shape(make_run(c).init) for c in (tiny_config, with_average(tiny_config.copy_and_resolve_references()))
    )
    assert without.ema is None
    parts = jax.tree.leaves((without.step, without.params, without.opt_state))
    assert len(jax.tree.leaves(without)) == len(parts)
    assert len(jax.tree.leaves(with_one)) == len(parts) + len(jax.tree.leaves(without.params))
    assert jax.tree.structure(with_one.opt_state) == jax.tree.structure(without.opt_state)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_it_lies_on_the_mesh_as_the_parameters(tiny_config, optimizer):
    tiny_config.optimizer.name = optimizer
    init, mesh = make_run(with_average(tiny_config)).init, make_mesh(2, 2, 2)
    for preset in sharding.PRESETS:
        state = abstract_state(init, mesh, preset)
        assert jax.tree.map(lambda x: x.sharding, state.ema) == jax.tree.map(lambda x: x.sharding, state.params)


def test_other_parameters_to_start_from_are_its_start_too():
    params = {'w': jnp.full(3, 2.0)}
    started = starting_from(TrainState(jnp.int32(0), {'w': jnp.ones(3)}, (), {'w': jnp.zeros(3)}), params)
    assert np.array_equal(started.params['w'], params['w']) and np.array_equal(started.ema['w'], params['w'])
    pointers = [x['w'].unsafe_buffer_pointer() for x in (started.params, started.ema)]
    assert pointers[0] != pointers[1], 'a step donates both'


def test_a_resume_may_change_its_decay_but_neither_begin_nor_end_it():
    config = config_lib.default_config()
    without = config.to_dict()
    del without['ema']  # as a run of an earlier version has stored it
    resuming.check_resume(without, config, note=print)
    config.ema.decay = 0.99
    with pytest.raises(ConfigError, match='ema.decay: 0.0 in the checkpoint, 0.99 now'):
        resuming.check_resume(without, config, note=print)
    notes = []
    stored = config.to_dict()
    config.ema.decay = 0.999
    resuming.check_resume(stored, config, note=notes.append)
    assert notes[0].endswith('ema.decay: 0.99 in the checkpoint, 0.999 now')
    config.ema.decay = 0.0
    with pytest.raises(ConfigError, match='ema.decay: 0.99 in the checkpoint, 0.0 now'):
        resuming.check_resume(stored, config, note=print)


@pytest.mark.parametrize('decay', [-0.1, 1.0, float('nan')])
def test_a_decay_out_of_range_is_refused(decay):
    config = config_lib.default_config()
    config.ema.decay = decay
    with pytest.raises(ConfigError, match=r'ema\.decay='):
        config_lib.check(config)


def test_the_memory_of_a_slice_counts_it():
    config = config_lib.load('mlm:base', {'slice': 'v5e-16', 'mesh.data': '-1', 'mesh.fsdp': '1', 'sharding': 'dp'})
    config = config_lib.resolve(config)
    without, row = slice_fitting.step_bytes(config, 16)
    config.ema.decay = 0.999
    assert slice_fitting.step_bytes(config, 16) == (
        pytest.approx(without + (without - slice_fitting.FIXED_BYTES) / 4),
        row,
    )
