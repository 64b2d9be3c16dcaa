"""Steps compiled for a slice that is not here: what is reported, and what does not fit."""

import importlib.util

import jax
import programs
import pytest

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError, step_flops
from mlm_jax.parallel import topology
from mlm_jax.performance import ahead_of_time, prediction

SHAPE = 'vocab_size=512,sequence_length=128,batch_size=16,model.num_layers=1,model.dtype=bfloat16'

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extra `tpu`)'
)


@needs_libtpu
@pytest.mark.tpu_compile
def test_a_slice_is_asked_for_what_the_step_needs_and_times_are_by_its_peaks():
    devices = topology.tpu_devices('v5e-4')
    config = config_lib.load(f'configs/mlm.py:tiny,recipe=roberta,{SHAPE}')
    line = prediction.predict('tiny', config, devices, ahead_of_time.LOW_EFFORT)
    assert (line['device'], line['num_devices']) == ('TPU v5 lite', 4)
    assert line['flops'] == pytest.approx(step_flops.step_flops(config, slots=True) / 4, rel=0.02)
    assert line['flops_needed'] == step_flops.step_flops(config) / 4
    # At least the state is read and written, and no more than a few hundred times its size is moved.
    assert 2 * line['memory_bytes'] / 10 < line['accessed_bytes'] < 1000 * line['memory_bytes']
    assert line['collectives'].keys() == {'all-reduce'}, 'of the gradients'
    predicted = line['prediction']
    assert predicted['product_ms'] == pytest.approx(1000 * line['flops'] / 197e12)
    assert predicted['step_ms'][0] == max(
        predicted[key] for key in ('product_ms', 'memory_ms', 'link_ms', 'network_ms')
    )
    assert predicted['network_ms'] == 0, 'there is one slice'
    assert 0 < predicted['mfu'][0] < predicted['mfu'][1] <= 1
    text = prediction.table([line, {'config': 'large', 'error': 'Ran out of memory\nuse more devices'}])
    assert 'all-reduce' in text and 'does not fit: Ran out of memory\n  use more devices' in text


def test_what_does_not_fit_is_a_line_with_the_reason(monkeypatch):
    def exhausted(*args, **kwargs):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm\nmore')

    monkeypatch.setattr(ahead_of_time, 'compile_train_step', exhausted)
    line = prediction.predict('tiny', config_lib.load('configs/mlm.py:tiny'), jax.devices(), None)
    assert line['error'].startswith('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm\nraise num_microbatches')


def test_a_configuration_that_cannot_run_there_is_an_error():
    config = config_lib.load('configs/mlm.py:tiny,model.num_heads=3')
    with pytest.raises(ConfigError, match='must be a multiple of model.num_heads=3'):
        prediction.predict('tiny', config, jax.devices(), None)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--topology=v5e-17'], "unknown topology 'v5e-17'"),
        (['--topology=v5e-16', '--profile=somewhere'], '--topology runs nothing: leave out --profile\n'),
        (['--topology=v5e-16', '--rounds=3', '--steps=1'], '--topology runs nothing: leave out --rounds and --steps'),
        (['--topology=v5e-16', '--peer_variants=eager-float32'], '--topology runs nothing: leave out --peer_variants'),
        (['--full_effort'], '--full_effort means nothing without --topology: add --topology, or leave out'),
        (['--peer_variants=eager-float32'], '--peer_variants means nothing without --peer: add --peer'),
    ],
)
def test_the_program_says_in_one_line_what_is_wrong(arguments, message):
    result = programs.run('bench', '--config=configs/mlm.py:tiny', *arguments)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert message in result.stderr
