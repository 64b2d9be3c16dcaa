"""Metrics: windows, the log file across restarts, the progress line."""

import errno
import io
import json
import math
import os
import sys
import time
import types

import jax.numpy as jnp
import pytest

from mlm_jax.files import mirror
from mlm_jax.training.metrics import MetricsWindow, MetricsWriter, ProgressLine, read_metrics, weighted_means


def test_means_are_sums_over_weights_and_not_means_of_means():
    assert weighted_means([{'loss': [10.0, 1.0]}, {'loss': [2.0, 3.0]}]) == {'loss': 3.0}
    assert weighted_means([{'loss': [0.0, 0.0]}]) == {'loss': 0.0}


def test_a_window_goes_on_from_a_checkpoint():
    whole, first = MetricsWindow(), MetricsWindow()
    updates = [{'loss': (jnp.float32(i + 0.1), jnp.float32(2.0))} for i in range(4)]
    for update in updates:
        whole.add(update)
    for update in updates[:2]:
        first.add(update)
    second = MetricsWindow(json.loads(json.dumps(first.fetch())))
    for update in updates[2:]:
        second.add(update)
    assert second.fetch() == whole.fetch()


def test_lines_after_the_checkpoint_are_dropped_and_a_torn_one_too(tmp_path):
    writer = MetricsWriter(tmp_path, -1, tensorboard=False, wandb_project='', config={})
    for step in (2, 4, 6):
        writer.write(step, {'train/loss': float(step)})
    writer.close()
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 7, "tra')
    MetricsWriter(tmp_path, 4, tensorboard=False, wandb_project='', config={}).close()
    assert [line['step'] for line in read_metrics(tmp_path / 'metrics.jsonl')] == [2, 4]
    MetricsWriter(tmp_path, -1, tensorboard=False, wandb_project='', config={}).close()
    assert read_metrics(tmp_path / 'metrics.jsonl') == []


def test_tensorboard_receives_the_scalars(tmp_path):
    pytest.importorskip('tensorboardX')
    writer = MetricsWriter(tmp_path, -1, tensorboard=True, wandb_project='', config={})
    writer.write(3, {'train/loss': 1.5})
    writer.close()
    (events,) = (tmp_path / 'tensorboard').iterdir()
    assert b'train/loss' in events.read_bytes()


def test_tensorboard_keeps_what_was_written_at_the_step_of_the_checkpoint(tmp_path, monkeypatch):
    started = []
    writer = types.SimpleNamespace(SummaryWriter=lambda _, **options: started.append(options) or io.StringIO())
    monkeypatch.setitem(sys.modules, 'tensorboardX', writer)
    for step in (-1, 0, 4):
        MetricsWriter(tmp_path, step, tensorboard=True, wandb_project='', config={}).close()
    assert [options['purge_step'] for options in started] == [0, 1, 5]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_line_is_rewritten_on_a_terminal_and_now_and_then_appended_in_a_file(monkeypatch):
    terminal, file, now = Terminal(), io.StringIO(), [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    for stream in (terminal, file):
        progress = ProgressLine(1000, stream)
        for seconds, step, seconds_per_step in ((0, 10, 100.0), (29, 15, 1.0), (31, 20, 1.0), (32, 1000, 1.0)):
            now[0] = float(seconds)
            progress.show(step, 'loss 1.0', seconds_per_step)
    assert '\n' not in terminal.getvalue() and 'step 15/' in terminal.getvalue()
    first, second, last = file.getvalue().splitlines()
    assert 'step 10/1,000 (1 %)' in first
    assert first.endswith('ETA 1d 03:30:00')
    assert second.endswith('ETA 00:16:20')
    assert 'step 1,000/1,000 (100 %)' in last


def test_wandb_receives_the_scalars_of_each_run_apart(tmp_path, monkeypatch):
    calls = []

    class Run:
        def define_metric(self, name, *, step_metric):
            calls.append((name, step_metric))

        def log(self, data):  # with `step=`, W&B drops what a run that goes on from an earlier step logs
            calls.append(data)

        def finish(self):
            calls.append('finished')

    def init(*, project, name, id, resume, dir, config):
        calls.append({'project': project, 'name': name, 'id': id, 'resume': resume})
        return Run()

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    for label, step in (('low', -1), ('high', -1), ('low', 2), ('low', -1)):
        workdir = tmp_path / 'rates' / label / 'seed0'
        workdir.mkdir(parents=True, exist_ok=True)
        writer = MetricsWriter(workdir, step, tensorboard=False, wandb_project='encoders', config={'seed': 1})
        writer.write(3, {'train/loss': 1.5})
        writer.close()
    (low, defined, logged, finished), high, again, anew = calls[:4], calls[4], calls[8], calls[12]
    assert (low['project'], low['name'], low['resume']) == ('encoders', 'rates/low/seed0', 'allow')
    assert defined == ('*', 'step')
    assert logged == {'step': 3, 'train/loss': 1.5} and finished == 'finished'
    assert low['id'] == again['id'] != high['id'] and len(low['id']) == 16
    assert anew['id'] not in (low['id'], high['id']), 'a run that begins anew in the same workdir is another'


@pytest.mark.parametrize(
    ('arguments', 'module', 'extra'),
    [
        (dict(tensorboard=True, wandb_project=''), 'tensorboardX', r'mlm_jax\[tensorboard\]'),
        (dict(tensorboard=False, wandb_project='x'), 'wandb', r'mlm_jax\[wandb\]'),
    ],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, arguments, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=extra):
        MetricsWriter(tmp_path, -1, config={}, **arguments)


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path):
    writer = MetricsWriter(tmp_path, -1, tensorboard=False, wandb_project='', config={})
    writer.write(1, {'eval/loss': math.nan, 'eval/ppl': math.inf, 'eval/accuracy': 0.5})
    writer.close()

    def refuse(word):
        raise AssertionError(f'{word} is no JSON')

    line = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=refuse)
    assert line == {'step': 1, 'eval/loss': None, 'eval/ppl': None, 'eval/accuracy': 0.5}
    assert math.isnan(read_metrics(tmp_path / 'metrics.jsonl')[0]['eval/loss'])


def test_damaged_lines_are_dropped_and_counted(tmp_path, capsys):
    """What a loss of power, and people, leave in a file."""
    path = tmp_path / 'metrics.jsonl'
    good = [b'{"step": 1, "train/loss": 2.0}\n', b'{"step": 2, "train/loss": 1.0}\n']
    bad = [
        b'\n',
        b'\0' * 40 + b'\n',
        b'{"step": 1, "tra\n',
        b'[1]\n',
        b'{"loss": 1}\n',
        b'\xff\xfe\n',
        b'[' * 9999 + b'\n',
    ]
    path.write_bytes(b''.join([*bad, good[0], *bad, good[1], b'{"step": 3']))
    assert [line['step'] for line in read_metrics(path)] == [1, 2]
    assert f'{2 * len(bad) + 1} damaged lines left out' in capsys.readouterr().err
    MetricsWriter(tmp_path, 2, tensorboard=False, wandb_project='', config={}).close()
    assert path.read_bytes() == b''.join(good)
    assert f'{2 * len(bad)} damaged lines dropped' in capsys.readouterr().err
    path.write_bytes(b'')
    MetricsWriter(tmp_path, 2, tensorboard=False, wandb_project='', config={}).close()
    assert 'has no lines for the first 2 steps' in capsys.readouterr().err and read_metrics(path) == []


def test_a_full_disk_is_said_by_the_file_that_it_cuts(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, -1, tensorboard=False, wandb_project='', config={})
    writer._file.close()
    writer._file = open('/dev/full', 'a', buffering=1)  # noqa: SIM115
    with pytest.raises(OSError, match='No space left on device') as raised:
        writer.write(1, {'train/loss': 1.0})
    assert raised.value.filename == str(tmp_path / 'metrics.jsonl')
    writer.close()


def test_a_thread_of_tensorboard_that_cannot_write_is_heard(tmp_path, monkeypatch):
    summaries = pytest.importorskip('tensorboardX')
    writer = MetricsWriter(tmp_path, -1, tensorboard=True, wandb_project='', config={})
    events = writer._tensorboard._writer.file_writer.event_writer
    for name in ('write_event', 'flush'):
        monkeypatch.setattr(events._ev_writer, name, full)
    with pytest.raises(OSError, match='No space left on device') as raised:
        for step in range(100):
            writer.write(step, {'train/loss': 1.0})
            time.sleep(0.01)
    assert raised.value.filename == str(tmp_path / 'tensorboard') and summaries
    writer.close()


def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_lines_outlast_the_machine_when_they_are_due_and_at_checkpoints(tmp_path, monkeypatch):
    """Of a mounted bucket, nothing would be seen before the run ends."""
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    writer = MetricsWriter(tmp_path, -1, tensorboard=False, wandb_project='', config={})
    synced.clear()
    writer.write(1, {})
    assert not synced
    writer.sync()
    monkeypatch.setattr(mirror, 'SECONDS', 0.0)
    writer.write(2, {})
    assert synced == [len('{"step": 1}\n'), 2 * len('{"step": 1}\n')]
    writer.close()
