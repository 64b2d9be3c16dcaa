"""The comparison: budgets, resuming, and what it writes."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import types

import numpy as np
import programs
import pytest

from mlm_jax import compare
from mlm_jax.comparing import budgets, configurations, existing, experiment, then
from mlm_jax.config import ConfigError, command_line, step_flops
from mlm_jax.data import prepared_data
from mlm_jax.training import runtime
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.workdir import write_config

pytestmark = pytest.mark.usefixtures('one_device')

SMALL = (
    'tiny,vocab_size=64,sequence_length=32,batch_size=8,total_steps=8,model.num_layers=1,model.width=32,'
    'model.ffn_width=64,evaluation.rows=16,evaluation.every_steps=2,compilation_cache=,checkpoint.keep_last=1,'
    'optimizer.name=adamw'
)

VALUES = types.SimpleNamespace(budget='steps', metric='', set=['a=b'])


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


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('listens', [True, False])
def test_a_signal_that_no_run_hears_ends_the_comparison(pair, tmp_path, monkeypatch, number, listens):
    """Behind the last step of a run, which ends first; and before its first one, where it would train to its end."""
    finished = []

    def signalled(config, workdir):
        if listens:
            runtime.Preemption()  # what a run listens with in its loop
        os.kill(os.getpid(), number)
        finished.append(workdir)

    monkeypatch.setattr(compare.train, 'train', signalled)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        compare.run_all(budgets.share_budget(pair, 'steps', tmp_path), [0], tmp_path, lambda *done: None)
    assert stopped.value.code == runtime.PREEMPTED_EXIT_CODE
    assert len(finished) == listens and signal.getsignal(number) == before


def test_an_interrupted_comparison_goes_on_and_a_finished_one_trains_nothing(pair, tmp_path, monkeypatch, capsys):
    candidates, train = budgets.share_budget(pair, 'steps', tmp_path), compare.train.train
    calls, reported = [], []

    def write(done, seeds):
        reported.append((len(done), list(seeds)))

    monkeypatch.setattr(compare.train, 'train', train_once(train, calls, at_most=3))
    with pytest.raises(KeyboardInterrupt):
        compare.run_all(candidates, [4, 2], tmp_path, write)
    runs = [tmp_path / label / f'seed{seed}' for seed in (4, 2) for label in ('low', 'high')]
    assert calls == runs[:3] and reported == [(2, [4])]

    monkeypatch.setattr(compare.train, 'train', train_once(train, calls, at_most=9))
    compare.run_all(candidates, [4, 2], tmp_path, write)
    assert calls == runs and reported == [(2, [4]), (2, [4, 2])]
    compare.run_all(candidates, [4, 2], tmp_path, write)
    assert calls == runs and reported == [(2, [4]), (2, [4, 2]), (2, [4, 2])]

    text = compare.write_report(candidates, [4, 2], tmp_path, VALUES)
    made = experiment.read(tmp_path)
    assert made.seeds == (4, 2) and made.commit and made.versions['jax'] and made.settings['all'] == '`a=b`'
    table = made.table('held_out')
    for label in ('low', 'high'):
        lines = read_metrics(tmp_path / label / 'seed4' / 'metrics.jsonl')
        cell, column = table.cell(label, 'eval/masked_nll')
        assert cell['by_seed']['4'] == [entry[column.name] for entry in lines if column.name in entry][-1]
        assert table.cell(label, 'steps')[0] == 8 and table.cell(label, 'tokens')[0] == 8 * 8 * 32
        assert 0 < table.cell(label, 'training')[0] < 60 and f'| {label} ' in text
    assert [line['step'] for line in made.curves if (line['run'], line['seed']) == ('high', 2)] == [0, 2, 4, 6, 8]
    assert (tmp_path / 'figure.png').stat().st_size > 5000 and (tmp_path / 'report.md').read_text() == text

    (tmp_path / 'low' / 'seed4' / 'environment.json').write_text('{"comm')
    written = tmp_path / 'experiment.json'
    written.write_text(written.read_text().replace('"notes": ""', '"notes": "Mine."'))
    assert '\n\nMine.\n\n' in compare.write_report(candidates, [4], tmp_path, VALUES), 'words of a person stay'
    assert experiment.read(tmp_path).commit == made.commit, 'that of the other runs'
    written.write_text(written.read_text().replace('"Mine."', '"Mine: {entropy|share|low}."'))
    capsys.readouterr()
    of_flops = types.SimpleNamespace(**{**vars(VALUES), 'budget': 'flops'})
    text = compare.write_report(candidates, [4], tmp_path, of_flops)
    assert 'Mine' not in text and "no table 'entropy'" in capsys.readouterr().err, 'not after hours of training'
    assert experiment.read(tmp_path).notes == 'Mine: {entropy|share|low}.'
    assert 'at equal FLOPs?' in text, 'no words of a person'

    data = prepared_data.load(pair[0].config.data)
    assert made.settings['rows'] == data.identity()
    with monkeypatch.context() as patch:
        manifest = dataclasses.replace(data.manifest, tokenizer_sha256='0' * 64)
        anew = dataclasses.replace(data, sources=(dataclasses.replace(data.sources[0], manifest=manifest),))
        assert anew.identity() != data.identity()
        patch.setattr(compare.prepared_data, 'load', lambda data: anew)
        with pytest.raises(ConfigError, match=r'low.seed4 holds a run that read other rows of rows .* --output, or de'):
            compare.run_all(candidates, [4, 2], tmp_path, lambda *done: None)

    run = tmp_path / 'low' / 'seed4'
    position = run / 'checkpoints' / '8' / 'position' / 'metadata'
    stored = json.loads(position.read_text())
    assert stored['data']['readers'][0]['held_out'] == data.manifest.fingerprint_of('validation')
    with monkeypatch.context() as patch:
        splits = {**data.manifest.splits, 'validation': data.manifest.split('train')}
        manifest = dataclasses.replace(data.manifest, splits=splits)
        anew = dataclasses.replace(data, sources=(dataclasses.replace(data.sources[0], manifest=manifest),))
        patch.setattr(compare.prepared_data, 'load', lambda data: anew)
        with pytest.raises(ConfigError, match=r'low.seed4 holds a run that was evaluated on other held-out rows of ro'):
            compare.run_all(candidates, [4, 2], tmp_path, lambda *done: None)

    made_anew = [dataclasses.replace(c, label=f'{c.label}-of-three') for c in candidates]
    assert [c.label for c in existing.labelled_as_before(made_anew, tmp_path, print)] == ['low', 'high'], (
        'as they are there'
    )
    assert [c.label for c in existing.labelled_as_before(candidates, tmp_path, print)] == ['low', 'high']
    swapped = [dataclasses.replace(candidates[0], label='mlm'), dataclasses.replace(candidates[1], label='low')]
    with pytest.raises(ConfigError, match='holds a run of another|labels others would now have'):
        compare.run_all(existing.labelled_as_before(swapped, tmp_path, print), [4], tmp_path, lambda *done: None)

    loaded, judge = [], types.SimpleNamespace(judge=lambda *of: None)
    with monkeypatch.context() as patch:
        patch.setattr(compare.loading, 'load', lambda source, mesh: loaded.append((source.directory, source.step)))
        compare._judge(compare.Work(candidates[0], 4, run, 1.0, judge), judge)
    assert loaded == [(run, 8)], 'the checkpoint at the end, and no other if that one is damaged'

    pair[1].config.optimizer.learning_rate = 0.125
    changed = budgets.share_budget(pair, 'steps', tmp_path)
    with pytest.raises(ConfigError, match=r'(?s)high.seed4 holds.*learning_rate: 0.005 there, 0.125 now.*delete'):
        compare.run_all(changed, [4, 2], tmp_path, lambda *done: None)


class Judge:
    """Finds the seed, and remembers of whom."""

    def __init__(self, name, judged, fails_at=None):
        self.measure, self._judged, self._fails_at = then.Measure(name, (), {}), judged, fails_at

    def is_done(self, candidate, seed, workdir):
        return (str(self.measure), candidate.label, seed) in self._judged

    def judge(self, model, candidate, seed, workdir):
        place = (str(self.measure), candidate.label, seed)
        if place == self._fails_at:
            raise FloatingPointError('it diverged')
        self._judged.append(place)

    def values(self, candidate, seed, workdir):
        return {'%': {'share': 10.0 * seed}} if self.is_done(candidate, seed, workdir) else {}

    def describe(self):
        return 'the seed'


def test_what_is_trained_is_judged_and_what_is_judged_is_not_judged_again(pair, tmp_path, monkeypatch, capsys):
    candidates, judged, order = budgets.share_budget(pair, 'steps', tmp_path), [], []
    monkeypatch.setattr(compare.loading, 'load', lambda workdir, mesh: None)
    monkeypatch.setattr(compare, '_train', lambda candidate, seed, workdir: order.append((candidate.label, seed)))
    monkeypatch.setattr(compare.existing, 'updates_done', lambda workdir, config: 0 if 'seed1' in str(workdir) else 8)
    chosen = [Judge('entropy', judged), Judge('effective_rank', judged, fails_at=('effective_rank', 'low', 0))]
    judged.append(('entropy', 'high', 0))

    def run():
        return compare.run_all(candidates, [0, 1], tmp_path, lambda done, seeds: order.append(seeds), chosen)

    assert compare.tables_of(chosen[1:], candidates, [0], tmp_path) == [], 'nothing to tell before'
    assert run() == ['it diverged'], 'all else is done'
    assert order == [[0], ('low', 1), ('high', 1), [0, 1]]
    expected = [
        (name, label, seed)
        for seed in (0, 1)
        for label in ('low', 'high')
        for name in map(str, (c.measure for c in chosen))
    ]
    assert sorted(judged) == sorted(set(expected) - {('effective_rank', 'low', 0)})
    shown = capsys.readouterr().err
    assert '2 of 4 runs are there already' in shown and '=== 1 of 9: low, seed 0, entropy\n' in shown
    assert re.search(
        r'=== 3 of 9: high, seed 0, effective_rank; what is left takes about .*, and training besides\n', shown
    )
    table, other = compare.tables_of(chosen, candidates, [0, 1], tmp_path)
    assert (table.name, other.name) == ('entropy', 'effective_rank')
    assert table.cell('share', 'low')[0]['by_seed'] == {'0': 0.0, '1': 10.0}
    assert other.cell('share', 'low')[0]['by_seed'] == {'1': 10.0}, 'what diverged is missing'
    assert other.cell('share', 'high − low')[0] == {'value': 0.0, 'of': 2, 'by_seed': {'1': 0.0}}, 'which is said'


def test_what_is_trained_under_the_first_seed_is_reported_at_once(pair, tmp_path, monkeypatch):
    candidates, written = [*pair, dataclasses.replace(pair[0], label='third')], []
    monkeypatch.setattr(compare, '_train', lambda candidate, seed, workdir: None)

    def write(done, seeds):
        written.append(([candidate.label for candidate in done], list(seeds)))

    compare.run_all(candidates, [3, 1], tmp_path, write)
    labels = ['low', 'high', 'third']
    assert written == [(labels[:2], [3]), (labels, [3]), (labels, [3, 1])]


def test_equal_flops_and_equal_steps(pair, tmp_path):
    pair[0].config.total_steps = 1000
    low, high = budgets.share_budget(pair, 'flops', tmp_path)
    assert low.config.total_steps == 1000 > high.config.total_steps
    ratio = step_flops.step_flops(low.config) / step_flops.step_flops(high.config)
    assert high.config.total_steps == round(1000 * ratio) and abs(low.cost / high.cost - 1) < 1e-3
    assert [c.config.total_steps for c in budgets.share_budget(pair, 'steps', tmp_path)] == [1000, 1000]
    assert pair[1].config.total_steps == 8, 'what was given stays as it was'


def test_flops_are_those_of_the_run(prepared, tmp_path):
    """Of the length that it has in the end, by the rows that there are: a ratio that changes by epochs costs so."""
    names = [f'configs/mlm.py:{SMALL},data.directory={prepared}']
    names += [f'{names[0]},masking.ratio=0.6,masking.final_ratio=0.1,masking.ratio_schedule=linear,{unit}' for unit in (
        'masking.anneal_steps=100', 'masking.anneal_epochs=2')]  # fmt: skip
    candidates = configurations.load_candidates(names, ['constant', 'steps', 'epochs'], ['total_steps=500'])
    first, *others = budgets.share_budget(candidates, 'flops', tmp_path)
    for candidate in others:
        resolved, _ = prepared_data.resolve(candidate.config)
        assert candidate.step_flops == step_flops.step_flops(resolved)
        assert candidate.cost == pytest.approx(first.cost, rel=0.5 / candidate.config.total_steps)


def test_a_budget_of_epochs_counts_the_rows_of_the_data(pair, tmp_path):
    pair[0].config.update(total_steps=None, total_epochs=2.0)
    low, high = budgets.share_budget(pair, 'steps', tmp_path)
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

    monkeypatch.setattr(budgets.speed, 'prepare', prepare)
    monkeypatch.setattr(budgets.speed, 'measure', measure)
    first = budgets.share_budget(pair, 'time', tmp_path)
    assert measured == ['low', 'high'] and [c.config.total_steps for c in first] == [8, 2]
    assert first[1].step_cost == pytest.approx(4 * first[0].step_cost)
    assert budgets.share_budget(pair, 'time', tmp_path)[1].step_cost == first[1].step_cost and len(measured) == 2

    third = configurations.load_candidates(
        [pair[0].name, pair[1].name, pair[0].name + ',masking.ratio=0.5'], ['low', 'high', 'higher'], []
    )
    more = budgets.share_budget(third, 'time', tmp_path)
    assert measured[2:] == ['low', 'higher']
    assert [c.step_cost / first[0].step_cost for c in more] == pytest.approx([1, 4, 6])


@pytest.mark.parametrize('seeds', [['0', '0'], ['x'], [], ['-1']])
def test_seeds_are_different_whole_numbers(seeds):
    with pytest.raises(ConfigError, match='--seeds='):
        command_line.parse_seeds(seeds)


def test_what_would_stop_a_later_run_is_said_first(pair):
    compare.check(pair, '')
    with pytest.raises(
        ConfigError, match=r'low: --metric=masked_nl: the runs will have eval/accuracy, eval/loss, eval'
    ):
        compare.check(pair, 'masked_nl')
    pair[1].config.accelerator = 'tpu'
    with pytest.raises(ConfigError, match='high: .*tpu'):
        compare.check(pair, '')
    pair[0].config.init_from = 'runs/there_is_none'
    with pytest.raises(ConfigError, match='low: .*runs/there_is_none'):
        compare.check(pair, '')


def test_all_seeds_begin_with_the_commit_of_the_first(pair, tmp_path, monkeypatch):
    asked = []

    def pinned(init_from, workdir):
        asked.append(workdir)
        return f'{init_from}@c0ffee'

    monkeypatch.setattr(compare.warm_start, 'pinned', pinned)
    pair[0].config.init_from = 'hf:organization/name'
    (tmp_path / 'low' / 'seed3').mkdir(parents=True)
    (low, _) = (compare.pinned(candidate, tmp_path) for candidate in pair)
    assert low.config.init_from == 'hf:organization/name@c0ffee' and pair[0].config.init_from == 'hf:organization/name'
    assert asked == [tmp_path / 'low' / 'seed3', tmp_path]


def test_two_processes_train_and_one_reports(prepared, tmp_path):
    """The report must not wait for the other process, which is at the next run already, or at its end."""
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    names = [f'configs/mlm.py:{SMALL},data.directory={prepared}{more}' for more in ('', ',on_nonfinite=skip')]
    command = [
        sys.executable, '-m', 'mlm_jax.compare', '--budget=steps', '--seeds=3', f'--output={tmp_path}',
        *(f'--config={name}' for name in names), '--label=stop', '--label=skip', '--set=total_steps=2',
        f'--coordinator_address=localhost:{port}', '--num_processes=2',
    ]  # fmt: skip
    flags = re.sub(r'device_count=\d+', 'device_count=1', os.environ['XLA_FLAGS'])
    environment = {**os.environ, 'XLA_FLAGS': flags}
    processes = [
        subprocess.Popen([*command, f'--process_id={i}'], env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        errors = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    assert experiment.read(tmp_path).seeds == (3,)


def test_a_wrong_command_line_ends_in_one_message(tmp_path):
    result = programs.run('compare', '--config=configs/mlm.py:tiny', f'--output={tmp_path}')
    assert result.returncode == 1
    assert 'two configurations or more' in result.stderr and 'Traceback' not in result.stderr


def test_judges_that_cannot_be_are_refused_before_anything_runs(pair, monkeypatch):
    def ask(*words, data=()):
        values = types.SimpleNamespace(then=words, data=list(data))
        return compare.make_judges(values, pair)

    assert ask() == []
    with pytest.raises(
        ConfigError, match='--data says where the tasks of --then=finetune:TASK lie, and there are none'
    ):
        ask('entropy', data=['glue=data/glue'])
    with pytest.raises(ConfigError, match='no directory is given for glue/rte'):
        ask('finetune:glue/rte')
    with pytest.raises(ConfigError, match='has 2[0-9][0-9] bytes, and would name a directory'):
        ask(f'entropy,ratios={"/".join(["0.123456789"] * 23)}')
    monkeypatch.setattr(compare.jax, 'process_count', lambda: 2)
    with pytest.raises(ConfigError, match='--then judges models in one process, and this is one of several'):
        ask('entropy')
