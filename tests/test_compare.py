"""The comparison: budgets, resuming, and what it writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from mlm_jax import compare
from mlm_jax.comparing import configurations
from mlm_jax.config import ConfigError, command_line, step_flops
from mlm_jax.training import runtime
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.workdir import write_config

SMALL = (
    'tiny,vocab_size=64,sequence_length=32,batch_size=8,total_steps=8,model.num_layers=1,model.width=32,'
    'model.ffn_width=64,evaluation.rows=16,evaluation.every_steps=2,compilation_cache=,checkpoint.keep_last=1'
)


@pytest.fixture
def pair(prepared):
    """Two masking ratios of the same model."""
    names = [f'configs/mlm.py:{SMALL},data.directory={prepared}{more}' for more in ('', ',masking.ratio=0.4')]
    return configurations.load_candidates(names, ['low', 'high'], [])


def train_once(train, calls, at_most):
    """A `train.train` that trains the first run, and copies it as the others; killed after some calls."""

    def run(config, workdir):
        if len(calls) == at_most:
            raise KeyboardInterrupt
        calls.append(workdir)
        if len(calls) == 1:
            return train(config, workdir)
        shutil.copytree(calls[0], workdir)
        return write_config(workdir, config)

    return run


def test_a_signal_behind_the_last_step_of_a_run_ends_the_comparison(pair, tmp_path, monkeypatch):
    def finished_and_signalled(config, workdir):
        runtime.Preemption()  # what a run listens with
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(compare.train, 'train', finished_and_signalled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        compare.train_all(compare.share_budget(pair, 'steps', tmp_path), [0], tmp_path, lambda seeds: None)
    assert stopped.value.code == runtime.PREEMPTED_EXIT_CODE
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupted_comparison_goes_on_and_a_finished_one_trains_nothing(pair, tmp_path, monkeypatch):
    candidates, train = compare.share_budget(pair, 'steps', tmp_path), compare.train.train
    calls, reported = [], []
    monkeypatch.setattr(compare.train, 'train', train_once(train, calls, at_most=3))
    with pytest.raises(KeyboardInterrupt):
        compare.train_all(candidates, [4, 2], tmp_path, reported.append)
    runs = [tmp_path / label / f'seed{seed}' for seed in (4, 2) for label in ('low', 'high')]
    assert calls == runs[:3] and reported == [[4]]

    monkeypatch.setattr(compare.train, 'train', train_once(train, calls, at_most=9))
    compare.train_all(candidates, [4, 2], tmp_path, reported.append)
    assert calls == runs and reported == [[4], [4, 2]]
    compare.train_all(candidates, [4, 2], tmp_path, reported.append)
    assert calls == runs and reported == [[4], [4, 2], [4, 2]]

    entries = compare.collect(candidates, [4, 2], tmp_path)
    text = compare.write_report(entries, 'steps', '', ['a=b'], tmp_path)
    report = json.loads((tmp_path / 'comparison.json').read_text())
    for label in ('low', 'high'):
        line, lines = report['configurations'][label], read_metrics(tmp_path / label / 'seed4' / 'metrics.jsonl')
        assert line['by_seed']['4'] == [entry[line['metric']] for entry in lines if line['metric'] in entry][-1]
        assert line['steps'] == 8 and line['tokens'] == 8 * 8 * 32 and 0 < line['train_seconds'] < 60
        assert label in text
    assert report['configurations']['high']['curve']['step'] == [0, 2, 4, 6, 8]
    assert (tmp_path / 'comparison.png').stat().st_size > 5000

    pair[1].config.optimizer.learning_rate = 0.125
    changed = compare.share_budget(pair, 'steps', tmp_path)
    with pytest.raises(ConfigError, match=r'(?s)high.seed4 holds.*learning_rate: 0.0005 there, 0.125 now.*delete'):
        compare.train_all(changed, [4, 2], tmp_path, lambda complete: None)


def test_equal_flops_and_equal_steps(pair, tmp_path):
    pair[0].config.total_steps = 1000
    low, high = compare.share_budget(pair, 'flops', tmp_path)
    assert low.config.total_steps == 1000 > high.config.total_steps
    ratio = step_flops.step_flops(low.config) / step_flops.step_flops(high.config)
    assert high.config.total_steps == round(1000 * ratio) and abs(low.cost / high.cost - 1) < 1e-3
    assert [c.config.total_steps for c in compare.share_budget(pair, 'steps', tmp_path)] == [1000, 1000]
    assert pair[1].config.total_steps == 8, 'what was given stays as it was'


def test_a_budget_of_epochs_counts_the_rows_of_the_data(pair, tmp_path):
    pair[0].config.update(total_steps=None, total_epochs=2.0)
    low, high = compare.share_budget(pair, 'steps', tmp_path)
    rows = json.loads((tmp_path.__class__(low.config.data.directory) / 'manifest.json').read_text())['splits']['train']
    assert low.config.total_steps == high.config.total_steps == round(2 * rows['rows'] / 8)
    assert low.config.total_epochs is None


def test_times_are_measured_once_and_new_ones_beside_the_first(pair, tmp_path, monkeypatch):
    """Measured again on a busier machine, times would ask for runs of another length than those that are there."""
    speed, measured = {'low': 1.0, 'high': 4.0, 'higher': 6.0}, []

    def prepare(name, config):
        label = {0.15: 'low', 0.4: 'high', 0.5: 'higher'}[config.masking.ratio]
        measured.append(label)
        return types.SimpleNamespace(label=label, seconds=[])

    def measure(contestants, rounds, steps_per_round):
        for load in np.linspace(1, 2, rounds) * len(measured):
            for contestant in contestants:
                contestant.seconds.append(load * speed[contestant.label])

    monkeypatch.setattr(compare.speed, 'prepare', prepare)
    monkeypatch.setattr(compare.speed, 'measure', measure)
    first = compare.share_budget(pair, 'time', tmp_path)
    assert measured == ['low', 'high'] and [c.config.total_steps for c in first] == [8, 2]
    assert first[1].step_cost == pytest.approx(4 * first[0].step_cost)
    assert compare.share_budget(pair, 'time', tmp_path)[1].step_cost == first[1].step_cost and len(measured) == 2

    third = configurations.load_candidates(
        [pair[0].name, pair[1].name, pair[0].name + ',masking.ratio=0.5'], ['low', 'high', 'higher'], []
    )
    more = compare.share_budget(third, 'time', tmp_path)
    assert measured[2:] == ['low', 'higher']
    assert [c.step_cost / first[0].step_cost for c in more] == pytest.approx([1, 4, 6])


@pytest.mark.parametrize('seeds', [['0', '0'], ['x'], [], ['-1']])
def test_seeds_are_different_whole_numbers(seeds):
    with pytest.raises(ConfigError, match='--seeds='):
        command_line.parse_seeds(seeds)


def test_a_wrong_command_line_ends_in_one_message(tmp_path):
    command = [sys.executable, '-m', 'mlm_jax.compare', '--config=configs/mlm.py:tiny', f'--output={tmp_path}']
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert 'two configurations or more' in result.stderr and 'Traceback' not in result.stderr
