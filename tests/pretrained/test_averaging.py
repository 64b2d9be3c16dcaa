"""Averages of parameters: of several checkpoints, and the moving average that a run keeps."""

import shutil

import jax
import numpy as np
import pytest

import mlm_jax
from mlm_jax import config as config_lib
from mlm_jax import train
from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.interop import card
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.pretrained import averaging, exporting, loading, sources, warm_start
from mlm_jax.training import build, checkpoints
from mlm_jax.training import workdir as workdir_lib
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.state import abstract_state, create_state


@pytest.fixture(scope='module')
def run(animals_config, one_device, tmp_path_factory):
    """Four updates with a moving average, and a checkpoint after every second: (configuration, workdir)."""
    config = config_lib.from_json(config_lib.to_json(animals_config))
    overrides = {
        'total_steps': '4', 'model.num_layers': '1', 'model.width': '32', 'model.ffn_width': '64', 'ema.decay': '0.5',
        'evaluation.every_steps': '2', 'checkpoint.every_steps': '2', 'logging.every_steps': '1',
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    workdir = tmp_path_factory.mktemp('averages') / 'run'
    train.train(config, workdir)
    return config, workdir


def params_of(source):
    return jax.device_get(mlm_jax.load(source).params)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def restored(config, workdir):
    config = config_lib.resolve(config)
    tokens = manifest_lib.load(config.data.directory)
    init = build.make_run(config, tokens.vocabulary, num_rows=16).init
    saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
    state = jax.device_get(saver.restore(abstract_state(init, make_mesh(), 'dp')))
    saver.close()
    return state


def test_the_average_of_one_checkpoint_or_of_equal_ones_is_it_to_the_bit(run):
    _, workdir = run
    one = params_of(f'{workdir}@2')
    for text in (f'average:{workdir}@2:0.3', f'average:{workdir}@2:0.3,{workdir}@2:0.6'):
        assert_same_bits(params_of(text), one)


def test_an_average_is_the_weighted_mean_in_any_order(run):
    _, workdir = run
    names = [f'{workdir}@2', f'{workdir}@4', f'ema:{workdir}@4']
    trees = [jax.tree.map(np.float64, params_of(name)) for name in names]
    for weights, marks in (((1, 1, 1), names), ((0.2, 0.5, 3), [f'{names[0]}:0.2', f'{names[1]}:.5', f'{names[2]}:3'])):
        expected = jax.tree.map(lambda *x, w=weights: np.average(x, axis=0, weights=w), *trees)
        for order in (marks, marks[::-1]):
            model = mlm_jax.load(f'average:{",".join(order)}')
            jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7), model.params, expected)
    assert model.step is None and str(model.source).startswith('average:')


def test_what_the_models_do_not_share_is_named(run, tmp_path):
    _, workdir = run
    other = tmp_path / 'other'
    shutil.copytree(workdir, other)
    source = sources.parse(f'average:{workdir},{other}')
    loading.check(source)
    changed = workdir_lib.read_config(other)
    changed.model.width, changed.model.dropout, changed.optimizer.name = 64, 0.5, 'muon'
    workdir_lib.write_config(other, changed)
    with pytest.raises(ConfigError, match='only checkpoints of one model') as refused:
        loading.load(source)
    assert f'{other} differs from {workdir}:\n  model.width: 32 there, 64 here' in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2
    shutil.copy(workdir / 'config.json', other)
    (other / 'tokenizer.model').write_bytes(b'another')
    with pytest.raises(ConfigError, match='tokenizer'):
        loading.check(source)
    with pytest.raises(ConfigError, match='not the workdir of a run'):
        loading.check(sources.parse(f'average:{workdir},{tmp_path}'))


def test_parameters_of_other_shapes_are_refused_by_name():
    mean = averaging.Mean()
    mean.add({'a': jax.numpy.ones(3), 'b': jax.numpy.ones(2)}, 1.0)
    with pytest.raises(ConfigError, match=r'  a: \(3,\) and \(4,\)\n  c: none and \(2,\)'):
        mean.add({'a': jax.numpy.ones(4), 'b': jax.numpy.ones(2), 'c': jax.numpy.ones(2)}, 1.0)


def test_checkpoints_of_hugging_face_are_averaged_too(write_bert, tmp_path):
    pytest.importorskip('safetensors.numpy')
    for name in 'ab':
        (tmp_path / name).mkdir()
        write_bert(tmp_path / name)
    source = f'average:hf:{tmp_path}/a:2,hf:{tmp_path}/b:1'
    assert_same_bits(params_of(source), params_of(f'hf:{tmp_path}/a'))
    shutil.rmtree(tmp_path / 'b')
    with pytest.raises(ConfigError):
        mlm_jax.load(source)


def test_a_run_keeps_its_moving_average_and_evaluates_it(run):
    config, workdir = run
    state = restored(config, workdir)
    assert_same_bits(params_of(f'ema:{workdir}'), state.ema)
    assert_same_bits(params_of(f'ema:{workdir}@4'), state.ema)
    assert_same_bits(params_of(str(workdir)), state.params)
    assert_same_bits(params_of(f'ema:{workdir}@0'), params_of(f'{workdir}@0'))
    lines = [line for line in read_metrics(workdir / 'metrics.jsonl') if 'eval/loss' in line]
    assert [line['step'] for line in lines] == [0, 2, 4]
    assert lines[0]['eval_ema/loss'] == lines[0]['eval/loss']
    assert lines[-1]['eval_ema/loss'] != lines[-1]['eval/loss']
    assert {key.removeprefix('eval_ema/') for key in lines[0] if key.startswith('eval_ema/')} == {
        key.removeprefix('eval/') for key in lines[0] if key.startswith('eval/')
    }


def test_a_run_that_was_killed_goes_on_with_the_same_average(run, tmp_path):
    config, workdir = run
    copy = shutil.copytree(workdir, tmp_path / 'run')
    shutil.rmtree(copy / 'checkpoints' / '4')
    train.train(config, copy)
    assert_same_bits(restored(config, copy), restored(config, workdir))
    assert read_metrics(copy / 'metrics.jsonl')[-1]['step'] == 4


def test_a_damaged_average_is_found_and_set_aside(run, tmp_path):
    _, workdir = run
    copy = shutil.copytree(workdir, tmp_path / 'run')
    shutil.rmtree(copy / 'checkpoints' / '4' / 'ema')
    with pytest.raises(ConfigError, match='checkpoint of step 4 .* is damaged: ema is missing'):
        mlm_jax.load(f'ema:{copy}@4')
    assert mlm_jax.load(str(copy)).step == 4, 'parameters do not need it'
    notes: list[str] = []
    saver = checkpoints.Checkpoints(copy / 'checkpoints', note=notes.append)
    assert saver.latest_step() == 2 and 'the checkpoint of step 4 is damaged: ema is missing' in notes[0]
    saver.close()


def test_a_run_without_a_moving_average_says_so(trained):
    workdir = trained[0]
    assert not (workdir / 'checkpoints' / '150' / 'ema').exists()
    for act in (mlm_jax.load, lambda text: loading.check(sources.parse(text))):
        with pytest.raises(ConfigError, match='has kept no moving average .* ema.decay=0.999'):
            act(f'ema:{workdir}')


@pytest.mark.parametrize('kind', ['average:{0}@2,{0}@4:1', 'ema:{0}'])
def test_a_run_starts_from_an_average(run, kind):
    config, workdir = run
    text = kind.format(workdir).replace('@2,', '@2:3,')
    continued = config_lib.from_json(config_lib.to_json(config))
    config_lib.apply_overrides(continued, config_lib.overrides.parse_settings([f'init_from={text}']))
    manifest = manifest_lib.load(config.data.directory)
    warm_start.check_source(continued, manifest)
    mesh = make_mesh()
    state = create_state(build.make_run(config_lib.resolve(continued), manifest.vocabulary, 16).init, mesh, 'dp')
    state = warm_start.start_from(continued.init_from, state, workdir / 'tokenizer.model')
    assert_same_bits(state.params, params_of(text))
    assert_same_bits(state.ema, state.params)


def test_an_average_in_the_argument_of_a_configuration_file_is_refused_in_words(run):
    with pytest.raises(ConfigError, match='Commas separate these; a value that holds one is given by itself'):
        config_lib.load('mlm:mini,init_from=average:runs/a@1,runs/a@2')


@pytest.mark.parametrize('kind', ['average:{0}@2:1,{0}@4:3', 'ema:{0}'])
def test_averages_are_exported_with_what_was_measured_of_them_alone(run, kind, tmp_path):
    pytest.importorskip('safetensors.numpy')
    pytest.importorskip('tokenizers')
    _, workdir = run
    model = mlm_jax.load(kind.format(workdir))
    exporting.write(model, exporting.plan(model), tmp_path / 'out')
    again = mlm_jax.load(f'hf:{tmp_path}/out')
    assert_same_bits(again.params, {key: model.params[key] for key in again.params})
    text = (tmp_path / 'out' / card.FILE).read_text()
    assert '`eval/loss`' not in text and 'its parameters are random' not in text
    if kind.startswith('ema'):
        assert '`eval_ema/loss`' in text and 'moving average of decay 0.5' in text
    else:
        assert f'{workdir}@2 (0.25), {workdir}@4 (0.75)' in text and 'eval_ema' not in text
