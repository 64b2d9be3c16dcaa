"""The training program, as its users run it: files, resumption, kills, signals, several processes, transfers."""

import copy
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import programs
import pytest

from mlm_jax import config as config_lib
from mlm_jax import evaluate
from mlm_jax import train as train_lib
from mlm_jax.config import ConfigError, possible_values
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import atomic
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel.mesh import make_mesh, replicated
from mlm_jax.pretrained import loading, sources
from mlm_jax.training import build, checkpoints, goodput, resuming, runtime
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.state import TrainState, abstract_state

REPOSITORY = pathlib.Path(__file__).parents[1]
VOCABULARY = standard_vocabulary(64)  # of the fixture `prepared`


def flags_of(config, workdir, argument='') -> list[str]:
    """The flags of the program for `config`, written as arguments of configs/mlm.py."""
    default = config_lib.default_config()
    changed = {key: new for key, (_, new) in config_lib.differences(default, config).items() if new is not None}
    text = ','.join(f'{key}={value}' for key, value in changed.items())
    return [f'--config={REPOSITORY}/configs/mlm.py:mini,recipe=roberta,{text}{argument}', f'--workdir={workdir}']


def command(config, workdir, *flags, argument='', program=('-m', 'mlm_jax.train')) -> list[str]:
    """The command line for `config`."""
    return [sys.executable, *program, *flags_of(config, workdir, argument), *flags]


# `mlm_jax.train`, which waits for its 11th batch until there is the file that its first argument names.
WAITING = """
import pathlib, runpy, sys, time
from mlm_jax.data import rows

take, taken, go = rows.Prefetcher.__next__, [], pathlib.Path(sys.argv[1])

def wait_and_take(self):
    taken.append(None)
    while len(taken) == 11 and not go.exists():
        time.sleep(0.01)
    return take(self)

rows.Prefetcher.__next__ = wait_and_take
sys.argv[:2] = ['mlm_jax.train']
runpy.run_module('mlm_jax.train', run_name='__main__')
"""


def waiting(go: pathlib.Path) -> tuple[str, ...]:
    """How to call `WAITING`: what `command` has in place of `-m mlm_jax.train`."""
    return '-c', WAITING, str(go)


def environment(num_devices: int) -> dict[str, str]:
    flags = re.sub(r'device_count=\d+', f'device_count={num_devices}', os.environ['XLA_FLAGS'])
    return {**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': str(REPOSITORY)}


def start(config, workdir, *flags, num_devices=1, **options) -> subprocess.Popen:
    return subprocess.Popen(
        command(config, workdir, *flags, **options),
        env=environment(num_devices),
        cwd=workdir.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def wait_for_step(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
    """Returns when the log of this start has reached a step, or the process has ended."""
    log, before = workdir / 'metrics.jsonl', time.time()
    while process.poll() is None:
        lines = log.read_bytes().split(b'\n')[:-1] if log.exists() and log.stat().st_mtime > before else []
        if lines and json.loads(lines[-1])['step'] >= step:
            return
        time.sleep(0.01)


def learned(workdir) -> list[dict]:
    """The log without what depends on the clock."""
    lines = read_metrics(workdir / 'metrics.jsonl')
    lines = [{k: v for k, v in line.items() if not k.startswith(('perf/', 'goodput/'))} for line in lines]
    return [line for line in lines if len(line) > 1]


def final_state(config, workdir):
    """The newest checkpoint, on one device."""
    saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
    state = jax.device_get(saver.restore(state_of(config_lib.to_json(config))))
    saver.close()
    return state


@functools.lru_cache
def state_of(config: str):
    """The shapes of the state of a configuration, which is JSON, on one device."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    run = build.make_run(config_lib.resolve(config_lib.from_json(config)), VOCABULARY, num_rows=16)
    return abstract_state(run.init, mesh, 'dp')


def assert_same_bits(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert np.array_equal(x, y), path


@pytest.fixture(scope='module')
def uninterrupted(animals_config, tmp_path_factory):
    """A run with dropout, from start to end, on one device: (config, workdir, output)."""
    workdir = tmp_path_factory.mktemp('uninterrupted') / 'run'
    config = config_lib.from_json(config_lib.to_json(animals_config))
    overrides = {
        'total_steps': '33', 'model.num_layers': '1', 'model.width': '32', 'model.ffn_width': '64',
        'model.dropout': '0.1', 'model.attention_dropout': '0.1', 'evaluation.every_steps': '11',
        'checkpoint.every_steps': '5', 'logging.every_steps': '3',
        'compilation_cache': os.environ['JAX_COMPILATION_CACHE_DIR'],
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    return config, workdir, finish(start(config, workdir))


@pytest.mark.smoke
def test_a_run_leaves_its_files_and_learns(uninterrupted):
    config, workdir, output = uninterrupted
    files = {path.name for path in workdir.iterdir()}
    assert {
        'config.json',
        'metrics.jsonl',
        'environment.json',
        'checkpoints',
        'tokenizer.model',
        'loss_curve.png',
    } <= files
    assert (
        config_lib.differences(config_lib.from_json((workdir / 'config.json').read_text()), config_lib.resolve(config))
        == {}
    )
    assert {'commit', 'versions', 'devices', 'command'} <= json.loads((workdir / 'environment.json').read_text()).keys()
    assert sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir()) == [25, 30, 33]
    lines = read_metrics(workdir / 'metrics.jsonl')
    train = [line for line in lines if 'train/loss' in line]
    assert [line['step'] for line in train] == list(range(3, 34, 3))
    assert {'train/accuracy', 'train/grad_norm', 'perf/tokens_per_second', 'perf/input_stall', 'perf/step_ms'} <= train[
        0
    ].keys()
    held_out = [line for line in lines if 'eval/loss' in line]
    assert [line['step'] for line in held_out] == [0, 11, 22, 33]
    assert held_out[0]['eval/loss'] == pytest.approx(np.log(config.vocab_size), rel=0.02), (
        'an untrained model knows nothing'
    )
    assert held_out[-1]['eval/loss'] < held_out[0]['eval/loss']
    assert 'ETA' in output and 'tokens/s' in output and 'compiled in' in output
    seconds = goodput.seconds_of(lines[-1])
    assert all(seconds[name] > 0 for name in ('train', 'start', 'compile', 'evaluation', 'checkpoint'))
    assert seconds['start'] > 0.5, 'imports count, too'
    assert seconds['repeated'] == seconds['interrupted'] == 0
    assert goodput.describe(seconds) in output


def test_a_signal_saves_and_the_same_command_goes_on(uninterrupted, tmp_path):
    config, expected, _ = uninterrupted
    workdir, go = tmp_path / 'run', tmp_path / 'go'
    process = start(config, workdir, program=waiting(go))
    wait_for_step(process, workdir, 9)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # as from srun, which hands on what Slurm has sent to the program, too
    go.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == runtime.PREEMPTED_EXIT_CODE, output
    assert 'stopped by a signal at step 11, which was saved' in output and 'step 11: held-out loss' not in output
    before = read_metrics(workdir / 'metrics.jsonl')[-1]
    output = finish(start(config, workdir))
    assert 'resuming at step 11 of 33' in output and 'step 11: held-out loss' in output
    after = read_metrics(workdir / 'metrics.jsonl')[-1]
    for name in ('start', 'compile', 'restore', 'interrupted'):
        assert after[f'goodput/{name}_seconds'] > before[f'goodput/{name}_seconds'], 'over all starts'
    assert learned(workdir) == learned(expected)


def test_two_processes_compute_the_same_run(uninterrupted, minimal_pairs, tmp_path):
    """Two processes of two devices each, which share the parameters, against one of one.

    One of them is signaled, and both stop. When they go on, they judge minimal pairs besides. Their run is restored
    onto another number of processes.
    """
    config, expected, _ = uninterrupted
    workdir, go = tmp_path / 'run', tmp_path / 'go'
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    shared = (f'--coordinator_address=localhost:{port}', '--num_processes=2')
    more = ',mesh.data=1,mesh.fsdp=-1,sharding=fsdp,checkpoint.every_steps=11'
    judging = f',evaluation.blimp={minimal_pairs},evaluation.blimp_percent=100'

    def start_both(argument, **options) -> list[subprocess.Popen]:
        each = [(*shared, f'--process_id={i}') for i in range(2)]
        return [start(config, workdir, *flags, num_devices=2, argument=argument, **options) for flags in each]

    processes = start_both(more, program=waiting(go))
    wait_for_step(processes[0], workdir, 9)
    processes[1].send_signal(signal.SIGTERM)
    time.sleep(2.5)  # JAX looks for a signal each second
    go.touch()
    ended = [(process.communicate(timeout=120)[0], process.returncode) for process in processes]
    assert [code for _, code in ended] == [runtime.PREEMPTED_EXIT_CODE] * 2, ended
    stopped = int(re.search(r'stopped by a signal at step (\d+), which was saved', ended[0][0])[1])
    outputs = [finish(process) for process in start_both(more + judging)]
    assert f'resuming at step {stopped} of 33' in outputs[0]
    for i, output in enumerate(outputs):
        assert f's: process {i} of 2, coordinator localhost:{port}, 2 of 4 devices are here' in output
    assert 'step 33/33' in outputs[0]
    assert 'step 33/33' not in outputs[1], 'one process writes'
    lines = learned(workdir)
    for ours, theirs in zip(lines, learned(expected), strict=True):
        assert {k: v for k, v in ours.items() if 'blimp' not in k} == pytest.approx(theirs, rel=1e-4)
    judged = [line for line in lines if 'eval/blimp' in line]
    assert [line['step'] for line in judged] == [11, 22, 33]
    last = judged[-1]
    assert last['eval/blimp'] == pytest.approx((2 * last['eval/blimp_semantics'] + last['eval/blimp_syntax']) / 3)
    assert f'held-out loss {last["eval/loss"]:.4f}; BLiMP {last["eval/blimp"]:.1%}' in outputs[0]
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        report = evaluate.judge_minimal_pairs([sources.parse(str(workdir))], mesh, minimal_pairs, 100.0, False)
    assert report['models']['run']['accuracy'] == pytest.approx(last['eval/blimp'])
    lengthened = programs.run('train', *flags_of(config, workdir, argument=',total_steps=36'))
    assert lengthened.returncode == 0, lengthened.stderr
    assert 'resuming at step 33 of 36' in lengthened.stderr
    assert 'total_steps: 33 in the checkpoint, 36 now' in lengthened.stderr


@pytest.fixture(scope='module')
def four_steps(make_tiny_config, tmp_path_factory):
    """A finished run of four steps, to read and to copy: (configuration, workdir)."""
    config, workdir = make_tiny_config(), tmp_path_factory.mktemp('four_steps') / 'run'
    config.logging.every_steps = 3  # so that the end of the run is no log step
    config.profile.start_step, config.profile.num_steps = 1, 2
    train_lib.train(config, workdir)
    return config, workdir


def test_a_checkpoint_restores_onto_other_meshes(four_steps):
    config, workdir = four_steps
    saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
    run = build.make_run(config_lib.resolve(config), VOCABULARY, num_rows=16)
    states = []
    for shape, preset in (((1, 8, 1), 'fsdp'), ((2, 2, 2), 'fsdp_tp'), ((8, 1, 1), 'dp')):
        states.append(jax.device_get(saver.restore(abstract_state(run.init, make_mesh(*shape), preset))))
    assert_same_bits(states[0], states[1])
    assert_same_bits(states[0], states[2])
    assert saver.restore_position().examples == 4 * 16


@pytest.mark.usefixtures('one_device_here')
def test_a_changed_schedule_or_clipping_is_taken_and_another_model_or_no_clipping_refused(
    tiny_config, four_steps, tmp_path, capsys
):
    workdir = shutil.copytree(four_steps[1], tmp_path / 'run')
    tiny_config.total_steps = 5
    tiny_config.optimizer.update(learning_rate=1e-3, clip_norm=2.0)
    train_lib.train(tiny_config, workdir)
    assert 'optimizer.learning_rate: 0.0005 in the checkpoint, 0.001 now' in capsys.readouterr().err
    for key, value, message in [
        ('model.ffn_width', 32, 'model.ffn_width: 64 in the checkpoint, 32 now'),
        ('optimizer.clip_norm', 0.0, 'optimizer.clip_norm: 2.0 in the checkpoint, 0.0 now'),
    ]:
        config = copy.deepcopy(tiny_config)
        config.update_from_flattened_dict({key: value})
        with pytest.raises(ConfigError, match=message):
            train_lib.train(config, workdir)


@pytest.mark.usefixtures('one_device_here')
def test_less_than_has_been_done_and_another_order_of_the_rows_are_refused(tiny_config, four_steps, tmp_path):
    workdir = pathlib.Path(shutil.copytree(four_steps[1], tmp_path / 'run'))
    for key, value, message in [
        ('total_steps', 3, 'this run has done 4 steps, and total_steps=3 asks for less'),
        ('seed', 1, 'seed: 0 in the checkpoint, 1 now\nThe order of the rows depends on it'),
    ]:
        config = copy.deepcopy(tiny_config)
        config[key] = value
        with pytest.raises(ConfigError, match=message):
            train_lib.train(config, workdir)
    for name in ('config.json', 'metrics.jsonl'):
        assert (workdir / name).read_bytes() == (four_steps[1] / name).read_bytes()


def test_another_decoder_is_refused_too():
    config = config_lib.default_config()
    stored = config.to_dict()
    config.mae_lm.decoder_layers = 2
    with pytest.raises(ConfigError, match='mae_lm.decoder_layers: 4 in the checkpoint, 2 now'):
        resuming.check_resume(stored, config, note=print)


def test_a_checkpoint_of_another_model_is_refused_in_words(trained):
    workdir, _, model = trained
    saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
    for params in ({**model.params, 'new': model.params['head']}, {'encoder': model.params['encoder']}):
        with pytest.raises(ConfigError, match=f'the checkpoint of step {model.step} in .* holds other tensors'):
            saver.restore_params(params)
    saver.close()


def test_an_optimizer_state_of_other_parts_is_refused_in_words(tmp_path):
    """Where Muon has taken over a matrix from Adam, its moments are not there."""
    mesh, params = make_mesh(), {name: {'kernel': np.ones((8, 8), np.float32)} for name in ('dense', 'widen')}
    saver, states = checkpoints.Checkpoints(tmp_path / 'checkpoints'), {}
    for part in ('muon', 'adam'):
        labels = {'dense': {'kernel': 'muon'}, 'widen': {'kernel': part}}
        optimizer = optax.partition({'muon': optax.trace(0.9), 'adam': optax.scale_by_adam()}, labels)
        state = TrainState(np.zeros([], np.int32), params, optimizer.init(params))
        states[part] = jax.device_put(state, replicated(mesh))
    saver.save(1, states['adam'], checkpoints.Position(0, 0.0, [], {}))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states)
    assert_same_bits(jax.device_get(saver.restore(abstract['adam'])), jax.device_get(states['adam']))
    with pytest.raises(ConfigError, match='holds (an optimizer state with other parts|other tensors)'):
        saver.restore(abstract['muon'])
    saver.close()


@pytest.mark.usefixtures('one_device_here')
def test_a_finished_run_does_nothing_more(four_steps, tmp_path):
    config, workdir = four_steps
    copy = shutil.copytree(workdir, tmp_path / 'run')
    tokenizer = copy / 'tokenizer.model'
    tokenizer.chmod(0o444)  # as prepared data may have it, for all to share
    former = tokenizer.stat().st_ino
    assert train_lib.train(config, copy) == {}
    assert learned(copy) == learned(workdir)
    assert tokenizer.stat().st_ino != former, 'replaced whole, not opened'


@pytest.fixture
def shallow_config(tiny_config, one_device_here):
    """`tiny_config` with one layer, on one device, for what depends on neither."""
    tiny_config.model.num_layers = 1
    return tiny_config


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(shallow_config, tmp_path):
    shallow_config.optimizer.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match=r'not finite at step \d+ \(rows \d+, '):
        train_lib.train(shallow_config, tmp_path / 'stop')
    shallow_config.on_nonfinite = 'skip'
    train_lib.train(shallow_config, tmp_path / 'skip')
    assert max(line.get('train/nonfinite', 0.0) for line in learned(tmp_path / 'skip')) == 1.0


@pytest.fixture
def dividing_by_zero(shallow_config, monkeypatch):
    """A configuration, refused otherwise, under which gradients are finite, and Adam's updates are not: 0 / 0."""
    for key in ('optimizer.b2', 'optimizer.eps'):
        monkeypatch.setitem(possible_values.RANGES, key, possible_values.Range(0, 1))
    shallow_config.optimizer.update(eps=0.0, b2=1.0)
    return shallow_config


def test_skipped_updates_are_counted_and_leave_no_nan_in_the_log(dividing_by_zero, tmp_path, capsys):
    config = dividing_by_zero
    config.on_nonfinite, config.logging.every_steps = 'skip', 2
    train_lib.train(config, tmp_path)

    def refuse(word):
        raise AssertionError(f'{word} is no JSON')

    lines = [json.loads(x, parse_constant=refuse) for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    logged = [line for line in lines if 'train/nonfinite' in line]
    assert [line['train/skipped_updates'] for line in logged] == [2, 2] and 'train/loss' not in logged[0]
    held_out = [line['eval/loss'] for line in lines if 'eval/loss' in line]
    assert held_out[0] == held_out[-1], 'parameters are as they were'
    assert 'all 2 updates skipped' in capsys.readouterr().err


def test_a_stop_says_what_became_of_the_parameters(dividing_by_zero, tmp_path):
    dividing_by_zero.checkpoint.every_steps = 1
    with pytest.raises(FloatingPointError, match='update is not finite at step 0 .* not applied, and no checkpoint'):
        train_lib.train(dividing_by_zero, tmp_path)
    assert not list((tmp_path / 'checkpoints').iterdir())


def test_a_seed_out_of_range_is_refused_before_there_is_a_workdir(tiny_config, tmp_path):
    tiny_config.seed = 2**32
    with pytest.raises(ConfigError, match='seed=4294967296'):
        train_lib.train(tiny_config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_no_host_transfer_between_log_points(shallow_config, tmp_path, monkeypatch):
    """Ten steps between two log lines fetch nothing; the count does see what a log line fetches."""
    shallow_config.total_steps, shallow_config.logging.every_steps = 20, 10
    shallow_config.evaluation.every_steps = shallow_config.checkpoint.every_steps = 100
    array_type = type(jax.numpy.zeros(()))
    fetched, history, value = [0], [], array_type._value

    def counted(self):
        fetched[0] += 1
        return value.fget(self)

    take_batch = train_lib.Prefetcher.__next__

    def at_each_step(self):
        history.append(fetched[0])
        return take_batch(self)

    monkeypatch.setattr(array_type, '_value', property(counted))
    monkeypatch.setattr(train_lib.Prefetcher, '__next__', at_each_step)
    train_lib.train(shallow_config, tmp_path)
    per_step = np.diff(history)
    assert len(per_step) == 19
    assert per_step[10] > 0, 'the log line at step 10 waits for metrics'
    assert per_step[np.arange(19) != 10].sum() == 0, per_step


def test_a_profile_is_written(four_steps):
    assert list((four_steps[1] / 'profile').rglob('*.xplane.pb'))


@pytest.fixture
def traces(monkeypatch):
    """What is asked of JAX's profiler, which takes long."""
    calls = []
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda directory: calls.append('start'))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
    return calls


@pytest.mark.parametrize('how', ['beyond the last step', 'stopped within', 'not begun'])
def test_a_profile_that_the_run_does_not_outlive_is_ended(traces, tmp_path, how):
    config = config_lib.default_config().profile
    config.start_step, config.num_steps = (4 if how == 'not begun' else 1), 100
    profiler = runtime.Profiler(config, tmp_path, 0, total_steps=4)
    for step in range(3 if how == 'stopped within' else 4):
        profiler.before(step)
        profiler.after(step, None)
    assert traces == {'beyond the last step': ['start', 'stop'], 'stopped within': ['start'], 'not begun': []}[how]
    profiler.close()
    assert traces == ([] if how == 'not begun' else ['start', 'stop'])


@pytest.fixture
def stopping(monkeypatch):
    """Lets a run end before the batch of a step: by a signal, after that step, or as if it were killed."""
    take, ends = train_lib.Prefetcher.__next__, {}

    def end_or_take(self):
        ends['batches'] = ends.get('batches', 0) + 1
        if ends['batches'] == ends.get('signal'):
            os.kill(os.getpid(), signal.SIGTERM)
        if ends['batches'] == ends.get('kill'):
            raise KeyboardInterrupt
        return take(self)

    monkeypatch.setattr(train_lib.Prefetcher, '__next__', end_or_take)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield ends
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_an_evaluation_that_a_preemption_left_is_done_once_by_the_next_start(
    shallow_config, tmp_path, stopping, traces, capsys
):
    shallow_config.evaluation.every_steps = 2
    shallow_config.profile.start_step, shallow_config.profile.num_steps = 1, 3
    expected = train_lib.train(shallow_config, tmp_path / 'expected')
    traces.clear()
    for end, error in (({'signal': 2}, SystemExit), ({'kill': 2}, KeyboardInterrupt)):
        stopping.clear()
        stopping.update(end)
        with pytest.raises(error):
            train_lib.train(shallow_config, tmp_path / 'run')
    stopping.clear()
    assert 'stopped by a signal at step 2' in capsys.readouterr().err
    assert traces == ['start', 'stop'] * 2, 'of both starts, which did not reach the end of the profile'
    assert train_lib.train(shallow_config, tmp_path / 'run') == expected
    assert learned(tmp_path / 'run') == learned(tmp_path / 'expected')


@pytest.mark.usefixtures('one_device_here')
def test_a_run_does_not_go_on_with_rows_of_another_tokenizer(tiny_config, four_steps, prepared, tmp_path):
    workdir = pathlib.Path(shutil.copytree(four_steps[1], tmp_path / 'run'))
    directory = pathlib.Path(shutil.copytree(prepared, tmp_path / 'rows'))
    (directory / 'tokenizer.model').write_bytes(b'another')
    tiny_config.data.directory = str(directory)
    with pytest.raises(
        ConfigError, match='trained with another tokenizer than that of .*; or train in another workdir'
    ):
        train_lib.train(tiny_config, workdir)
    assert (workdir / 'tokenizer.model').read_bytes() == b''


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('accelerator', 'tpu', 'JAX found only cpu devices'),
        ('mesh.data', 3, 'does not fit 8 devices'),
        ('batch_size', 12, 'must be a multiple of mesh.data'),
        ('sequence_length', 64, 'sequence_length: 64 in the configuration, 32 in the data'),
        ('data.directory', 'nowhere', 'mlm_jax.prepare'),
        ('evaluation.blimp', 'nowhere', 'nowhere is not a directory: give the directory of the published BLiMP data'),
        ('evaluation.blimp_percent', 0.0, 'must lie above 0'),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(tiny_config, tmp_path, key, value, message):
    tiny_config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=message):
        train_lib.train(tiny_config, tmp_path)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'sharding': 'fsdp_tp', 'mesh.tensor': 8}, 'has 2 heads, .* mesh.data=-1,mesh.tensor=2'),
        ({'sharding': 'fsdp', 'mesh.fsdp': 8, 'model.width': 36}, 'has 36 width, .* mesh.data=-1,mesh.fsdp=4'),
    ],
)
def test_sizes_that_the_mesh_does_not_divide_are_refused_before_anything_is_written(
    tiny_config, tmp_path, settings, message
):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 3}\n')
    tiny_config.update_from_flattened_dict(settings)
    with pytest.raises(ConfigError, match=message):
        train_lib.train(tiny_config, tmp_path)
    assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 3}\n' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--set=optimizer.learnin_rate=1', 'unknown configuration key'),
        ('--set=batch_size=many', 'batch_size=many: expected a value of type int'),
        ('--set=batch_size', '--set=batch_size: give KEY=VALUE'),
        ('--set=recipe=modern', 'recipe is an argument of the configuration file'),
        ('--config=configs/mlm.py:mini', '--config is given 2 times'),
        ('--config.batch_size=8', '--config.batch_size=8 is now --set=batch_size=8'),
        ('--configs=mlm:tiny,mae_lm:tiny', '--configs is now --config, given once for each'),
        ('--confg=1', 'Unknown command line flag'),
        ('stray', 'unexpected arguments: stray'),
    ],
)
def test_wrong_command_lines_end_in_one_message(tmp_path, flag, message):
    result = programs.run('train', f'--config={REPOSITORY}/configs/mlm.py:tiny', f'--workdir={tmp_path}', flag)
    assert result.returncode == 1
    assert result.stderr.startswith('error: ') and message in result.stderr
    assert 'Traceback' not in result.stderr


def test_a_wrong_command_line_of_the_module_ends_in_one_message_too(tiny_config, tmp_path):
    arguments, environ = command(tiny_config, tmp_path, '--set=batch_size'), environment(1)
    result = subprocess.run(arguments, capture_output=True, text=True, env=environ, cwd=tmp_path, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith('error: --set=batch_size: give KEY=VALUE')
    assert 'Traceback' not in result.stderr


def test_loading_without_a_run_says_so(tmp_path):
    with pytest.raises(ConfigError, match='not the workdir of a run'):
        loading.load(tmp_path, make_mesh())


# ---- Damaged data ---------------------------------------------------------------------------------------------------


@pytest.fixture
def with_hashes(tiny_config, prepared, tmp_path):
    """`tiny_config` for a copy of its data whose manifest knows hashes."""
    directory = shutil.copytree(prepared, tmp_path / 'rows')
    manifest = manifest_lib.load(directory)
    splits = {
        name: dataclasses.replace(
            split,
            shards=tuple(dataclasses.replace(s, sha256=atomic.sha256(directory / s.file)) for s in split.shards),
        )
        for name, split in manifest.splits.items()
    }
    manifest_lib.save(dataclasses.replace(manifest, splits=splits), directory)
    tiny_config.data.directory = str(directory)
    return tiny_config, directory


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


def test_a_shard_that_has_changed_ends_the_run_before_anything_is_kept_of_it(with_hashes, tmp_path):
    config, directory = with_hashes
    flip(directory / 'train-00000-of-00001.npy')
    with pytest.raises(ConfigError, match=r'(?s)train-00000-of-00001.npy has changed since .* run the same prepare'):
        train_lib.train(config, tmp_path / 'run')
    assert not list((tmp_path / 'run' / 'checkpoints').iterdir())


def test_other_damage_is_found_before_the_workdir_is_made(with_hashes, tmp_path):
    config, directory = with_hashes
    path = directory / 'validation-00000-of-00001.npy'
    np.save(path, np.load(path).astype(np.float64))
    with pytest.raises(ConfigError, match=r'validation-.*: it holds numbers of type <f8, but the manifest says uint16'):
        train_lib.train(config, tmp_path / 'run')
    path.unlink()
    with pytest.raises(ConfigError, match=r'validation-.*: it is missing; copy it again, or run the same prepare'):
        train_lib.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
