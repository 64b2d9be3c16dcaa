"""The analyses, on checkpoints of every objective."""

import copy
import dataclasses
import functools
import json
import re
import shutil
import types

import jax
import numpy as np
import programs
import pytest

from mlm_jax import probe, train
from mlm_jax.analysis import alignment, alignment_picture, effective_rank_report, entropy, entropy_report
from mlm_jax.analysis.effective_rank import effective_rank
from mlm_jax.config import ConfigError
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.shards import Shards
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.parallel.mesh import batch_sharding
from mlm_jax.pretrained import batches, loading
from mlm_jax.training import build
from mlm_jax.training.evaluation import HeldOut
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.workdir import write_config

pytestmark = pytest.mark.usefixtures('one_device')

NUM_ROWS = 20


@pytest.fixture(scope='module')
def mae_lm(animals_config, trained, tmp_path_factory):
    """A few steps of MAE-LM on the same rows: (workdir, model)."""
    config = copy.deepcopy(animals_config)
    config.objective, config.total_steps, config.mae_lm.decoder_layers = 'mae_lm', 5, 1
    workdir = tmp_path_factory.mktemp('mae_lm') / 'mae_lm'
    train.train(config, workdir)
    return workdir, loading.load(workdir, trained[1])


@pytest.fixture(scope='module')
def exlm(animals_config, trained, tmp_path_factory):
    """The start of a run of ExLM on the same rows: (workdir, model)."""
    config = copy.deepcopy(animals_config)
    config.objective = 'exlm'
    config.model.update(positions='rotary_2d', norm='pre', embedding_norm=False)
    config.masking.update(mask_fraction=1.0, random_fraction=0.0)
    workdir = tmp_path_factory.mktemp('exlm') / 'exlm'
    workdir.mkdir()
    write_config(workdir, config)
    shutil.copy(trained[0] / 'tokenizer.model', workdir)
    return workdir, loading.load(f'{workdir}@0', trained[1])


def run_probe(*arguments) -> str:
    """What the program prints."""
    result = programs.run('probe', *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_ranks_of_unmasked_rows_equal_those_of_all_representations_at_once(trained):
    _, mesh, model = trained
    with jax.set_mesh(mesh):
        sums = effective_rank_report.rank_sums(model, mesh, NUM_ROWS)
    tokens = Shards(model.config.data.directory, 'validation').read(np.arange(NUM_ROWS))
    segments = segment_ids(tokens, model.tokenizer.vocabulary)
    outputs = jax.jit(functools.partial(effective_rank_report.layer_outputs, model, method='encode'))
    hidden, _ = outputs(jax.device_get(model.params), tokens, segments)
    for layer in range(2):
        rows = np.asarray(hidden[layer], np.float64)[segments > 0]
        for centred in (False, True):
            share = np.linalg.svd(rows - rows.mean(0) * centred, compute_uv=False) ** 2
            expected = np.argmax(np.cumsum(share) / share.sum() >= 0.9) + 1
            assert effective_rank(sums.spectra(centred), 0.9)[layer, 3] == expected


def test_each_token_is_counted_once_in_its_group(trained, mae_lm, exlm):
    _, mesh, model = trained
    tokens = Shards(model.config.data.directory, 'validation').read(np.arange(NUM_ROWS))
    real = int((tokens != model.tokenizer.vocabulary.pad_id).sum())
    with jax.set_mesh(mesh):
        kept, masked, everything, unmasked = effective_rank_report.rank_sums(model, mesh, NUM_ROWS).count_G
        assert kept + masked == everything == unmasked == real
        assert 0.08 * real < masked < 0.16 * real
        mae_kept, mae_masked, mae_all, _ = effective_rank_report.rank_sums(mae_lm[1], mesh, NUM_ROWS).count_G
        *_, copies, exlm_unmasked = effective_rank_report.rank_sums(exlm[1], mesh, NUM_ROWS).count_G
    assert (mae_kept, mae_masked, mae_all) == (kept, 0, kept), 'the same masks; [MASK] stays out of the encoder'
    assert exlm_unmasked == real < copies, 'a token is counted at its first copy alone; masked tokens have several'


def test_repeated_mlm_reads_each_token_several_times_in_every_curve(trained):
    _, mesh, model = trained
    model, config = copy.copy(model), copy.deepcopy(model.config)
    config.masking.repeats = 2
    params = jax.tree.map(np.asarray, model.params)
    table = params['encoder']['position_embedding']
    table['embedding'] = np.tile(table['embedding'], (2, 1))
    objective = model.objective.clone(config=dataclasses.replace(model.objective.config, max_length=64))
    for name, value in (('config', config), ('objective', objective), ('params', params)):
        object.__setattr__(model, name, value)
    tokens = Shards(config.data.directory, 'validation').read(np.arange(NUM_ROWS))
    real = int((tokens != model.tokenizer.vocabulary.pad_id).sum())
    with jax.set_mesh(mesh):
        *_, everything, unmasked = effective_rank_report.rank_sums(model, mesh, NUM_ROWS).count_G
    assert everything == unmasked == 2 * real


def test_layers_of_expanded_rows_are_read_where_their_tokens_are(exlm):
    model = exlm[1]
    params = jax.device_get(model.params)
    tokens = Shards(model.config.data.directory, 'validation').read(np.arange(2))
    segments = segment_ids(tokens, model.tokenizer.vocabulary)
    outputs = jax.jit(functools.partial(effective_rank_report.layer_outputs, model, method='encode'))
    hidden, result = outputs(params, tokens, segments)
    encoded = jax.jit(functools.partial(model.objective.apply, method='encode'))({'params': params}, tokens, segments)
    assert hidden.shape == (model.config.model.num_layers, *encoded.shape)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(result)[real], np.asarray(encoded)[real], atol=1e-5)
    np.testing.assert_array_equal(hidden[-1], result)
    assert not np.allclose(np.asarray(hidden[0])[real], np.asarray(encoded)[real], atol=0.1)


def test_the_program_lays_checkpoints_over_each_other(trained, mae_lm, tmp_path):
    workdirs = [f'--model={workdir}' for workdir in (trained[0], mae_lm[0])]
    shown = run_probe('effective_rank', *workdirs, f'--output={tmp_path}', f'--rows={NUM_ROWS}', '--thresholds=0.5,0.9')
    report = json.loads((tmp_path / 'effective_rank.json').read_text())
    assert set(report) == {'run', 'mae_lm'}
    assert set(report['run']['curves']) == set(effective_rank_report.CURVES)
    for by_threshold in (
        report['run']['curves'][effective_rank_report.CURVES[0]][kind] for kind in ('centred', 'uncentred')
    ):
        assert set(by_threshold) == {'0.5', '0.9'}
        assert all(0 < low <= high <= 64 for low, high in zip(by_threshold['0.5'], by_threshold['0.9'], strict=True))
    assert (tmp_path / 'effective_rank.png').stat().st_size > 10_000
    assert 'mae_lm' in shown


def test_gradient_variance_from_the_start_to_the_newest_checkpoint(mae_lm, tmp_path):
    models = [f'--model={mae_lm[0]}@{step}' for step in (0, 5)]
    shown = run_probe('gradient_variance', *models, '--texts=8', '--segments=3', '--draws=3', f'--output={tmp_path}')
    report = json.loads((tmp_path / 'gradient_variance.json').read_text())
    assert [entry['step'] for entry in report.values()] == [0, 5]
    for label, entry in report.items():
        assert label in shown
        assert len(entry['hamming_distance']) == len(entry['overlap']) == len(entry['covariance_over_variance'])
        assert entry['hamming_distance'] == sorted(entry['hamming_distance'], reverse=True)
        assert entry['variance'][0] > 0 and entry['own_variance'][0] > 0 and entry['texts'] == 8
        covariance = [value for value, _ in entry['covariance_over_variance']]
        assert covariance[0] < covariance[2] < covariance[-1], 'it falls with the distance'
    assert (tmp_path / 'gradient_variance.png').stat().st_size > 10_000


def test_entropy_has_the_same_masks_for_every_objective(trained, mae_lm, exlm, monkeypatch):
    """Whatever the size of the batch; of another ratio, others."""
    seen = []
    monkeypatch.setattr(entropy, 'row_sums', lambda objective, params, batch: {'tokens': batch.weights, 'batch': batch})
    monkeypatch.setattr(entropy, 'summarize', seen.append)
    mesh = trained[1]
    with jax.set_mesh(mesh):
        for model, at_once in ((trained[2], 8), (mae_lm[1], 16), (exlm[1], 24)):
            monkeypatch.setattr(batches, 'rows_at_once', lambda *args, at_once=at_once: at_once)
            entropy_report.measure(model, mesh, [0.15, 0.5], NUM_ROWS)
    for i, ratio in enumerate((0.15, 0.5)):
        first, *others = (seen[j]['batch'] for j in (i, i + 2, i + 4))
        assert first.tokens.shape == (NUM_ROWS, 32)
        for other in others:
            jax.tree.map(np.testing.assert_array_equal, first, other)
        special_ids = trained[2].tokenizer.vocabulary.special_ids
        eligible = (~np.isin(first.tokens, special_ids)).sum(1)
        assert (abs((first.positions < 32).sum(1) - ratio * eligible) < 1).all()


def test_entropy_of_every_objective(trained, mae_lm, exlm, tmp_path):
    workdirs = [f'--model={workdir}@0' for workdir in (trained[0], mae_lm[0], exlm[0])]
    shown = run_probe('entropy', *workdirs, f'--output={tmp_path}', f'--rows={NUM_ROWS}', '--ratios=0.5')
    report = json.loads((tmp_path / 'entropy.json').read_text())
    assert list(report) == ['run@0', 'mae_lm@0', 'exlm@0']
    for label, entry in report.items():
        assert list(entry['ratios']) == ['0.5'] and entry['rows'] == NUM_ROWS
        for ratio, summary in entry['ratios'].items():
            assert summary['tokens'] == report['run@0']['ratios'][ratio]['tokens'] and summary['left_out'] == 0
            name = label.removesuffix('@0')
            names = OBJECTIVES['mlm' if name == 'run' else name].distributions
            assert tuple(summary['bits']) == names
            for values in summary['bits'].values():
                assert values['gap'][0] == pytest.approx(values['nll'][0] - values['entropy'][0], abs=1e-9)
                assert values['nll'][0] == pytest.approx(np.log2(trained[2].config.vocab_size), abs=0.5), 'untrained'
    assert (tmp_path / 'entropy.png').stat().st_size > 10_000
    assert 'prior, mixture' in shown and 'mae_lm' in shown
    of_no_step = report['run@0'] | {'step': None}  # as that of an average, or of random parameters
    assert entropy_report.describe('random-run', of_no_step).startswith('random-run (mlm): bits per masked token')


def test_checkpoints_of_other_text_do_not_compare(trained, exlm):
    other = copy.copy(trained[2])
    assert entropy_report.same_text(trained[2], exlm[1], NUM_ROWS)
    object.__setattr__(other, 'tokenizer', types.SimpleNamespace(model=b'another'))
    assert not entropy_report.same_text(other, exlm[1], NUM_ROWS)


def test_the_alignment_of_a_row(exlm, trained, tmp_path):
    run_probe('dag', f'--model={exlm[0]}@0', '--ratios=0.5', '--row=2', f'--output={tmp_path}')
    row = json.loads((tmp_path / 'dag_row2.json').read_text())
    assert (tmp_path / 'dag_row2.png').stat().st_size > 30_000
    tokens = Shards(exlm[1].config.data.directory, 'validation').read(np.array([2]))[0]
    assert row['pieces'] == exlm[1].tokenizer.pieces(tokens[tokens != 0])
    targets, states, path = row['targets'], row['states'], [target['viterbi'] for target in row['targets']]
    assert len(states) == 4 * len(targets) and [s['target'] for s in states[3:6]] == [0, 1, 1]
    assert [target['anchor'] for target in targets] == [True, *[False] * (len(targets) - 2), True]
    assert all(row['pieces'][target['position']] == target['piece'] for target in targets)
    assert path == sorted(set(path)) and (path[0], path[-1]) == (0, len(states) - 1)
    assert sum(state['occupancy'] for state in states) == pytest.approx(len(targets), rel=1e-4)
    for target in targets:
        assert sum(p for _, p in target['emitted_by']) == pytest.approx(1, abs=0.001 * len(states))
    assert all(v < u and alignment.LEAST < p < 1.001 for v, u, p in row['transitions'])


def test_the_lines_of_a_picture():
    assert alignment_picture.lines_of(1) == [range(1)]
    assert [len(line) for line in alignment_picture.lines_of(21)] == [7, 7, 7]
    row = {'pieces': ['[CLS]', '▁the', '▁un', 'real', 'ist', 'ic', '▁cat', '.', '[SEP]'], 'targets': []}
    for position, anchor in ((0, True), (3, False), (6, False), (8, True)):
        row['targets'].append({'position': position, 'anchor': anchor})
    pairs = alignment_picture.text_of(row, range(4))
    assert ''.join(text for text, _ in pairs) == '[CLS]¹ the un[real]²istic [cat]³.[SEP]⁴'
    lines = alignment_picture.wrap(pairs, 16)
    assert [''.join(text for text, _ in line) for line in lines] == ['[CLS]¹ the', 'un[real]²istic', '[cat]³.[SEP]⁴']
    assert [text for text, _ in alignment_picture.text_of(row, range(2, 4))] == [' [cat]³', '.', '[SEP]⁴']


def test_only_a_graph_is_drawn(trained, exlm):
    with pytest.raises(ConfigError, match='objective=mlm: .* has no states to align'):
        alignment.align_row(trained[2], 0, 0.15)
    with pytest.raises(ConfigError, match='there are [0-9]+ held-out rows'):
        alignment.align_row(exlm[1], 10**6, 0.15)
    config = copy.deepcopy(exlm[1].config)
    config.exlm.transitions = 'none'
    objective = build.make_objective(config, exlm[1].tokenizer.vocabulary)
    with pytest.raises(ConfigError, match='without transitions there is no graph'):
        alignment.check_model(types.SimpleNamespace(objective=objective, objective_name='exlm'))


def test_the_help_of_each_flag_names_the_probes_that_read_it():
    shown = ' '.join(programs.run('probe', '--help').stdout.split())
    for name, found in probe.PROBES.items():
        for flag in found.flags:
            assert re.search(rf'--{flag}: For [\w ]*\b{name}\b', shown), (name, flag)
    of_some = set(re.findall(r'--(\w+): For ', shown))
    assert of_some == {flag for found in probe.PROBES.values() for flag in found.flags}
    assert set(re.findall(r' --(\w+): ', shown)) - of_some == {'model', 'data_directory', 'output'}


def test_ratios_are_sorted():
    assert probe.mask_ratios(['0.5', '0.15', '.5']) == [0.15, 0.5]


def test_step_0_is_where_training_started(trained):
    """Its held-out loss is the one that the run wrote before its first update."""
    workdir, mesh, _ = trained
    first = loading.load(f'{workdir}@0', mesh)
    line = next(line for line in read_metrics(workdir / 'metrics.jsonl') if 'eval/loss' in line)
    rows = Shards(first.config.data.directory, 'validation')
    with jax.set_mesh(mesh):
        held_out = HeldOut(rows, 20, 16, first.tokenizer.vocabulary.pad_id, batch_sharding(mesh))
        found = held_out.evaluate(jax.jit(first.run.eval_step), first.params)
    assert line['step'] == first.step == 0
    assert found['loss'] == pytest.approx(line['eval/loss'], rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['rank'], 'say what to probe'),
        (['effective_rank', '--model=x'], 'output'),
        (['effective_rank', '--model=nowhere', '--output={tmp}'], 'not the workdir of a run'),
        (['entropy', '--model=hf:bert', '--output={tmp}'], 'probe entropy reads the held-out rows that a run was'),
        (['entropy', '--workdir=runs/mlm', '--output={tmp}'], '--workdir is now --model=runs/mlm (runs/mlm@STEP for a'),
        (['dag', '--model=x', '--step=7'], '--step is now a part of --model, as in --model=WORKDIR@7'),
    ],
)
def test_wrong_command_lines_end_in_one_message(tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    result = programs.run('probe', *arguments)
    assert result.returncode == 1
    assert message in result.stderr and 'Traceback' not in result.stderr


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('effective_rank', ['--thresholds=0,2'], '--thresholds=0,2 must be numbers above 0 and not above 1'),
        ('effective_rank', ['--thresholds=high'], 'must be numbers above 0'),
        ('effective_rank', ['--thresholds='], 'must be numbers above 0'),
        ('entropy', ['--ratios=0.15,1'], 'above 0 and below 1'),
        ('entropy', ['--ratios=half'], 'above 0 and below 1'),
        ('dag', ['--model={run}@0'], 'one row of one checkpoint'),
        (
            'effective_rank',
            ['--ratios=0.5'],
            'probe effective_rank does not read --ratios, a flag of entropy and dag: ',
        ),
        (
            'entropy',
            ['--draws=8'],
            'does not read --draws, a flag of gradient_variance: leave it out. The flags of ent',
        ),
        ('gradient_variance', ['--rows=8'], 'besides those of all probes, are --texts, --segments, --draws'),
        ('dag', ['--rows=8'], 'besides those of all probes, are --row, --ratios'),
    ],
)
def test_wrong_values_are_refused(trained, tmp_path, name, arguments, message):
    arguments = [argument.format(run=trained[0]) for argument in arguments]
    result = programs.run('probe', name, f'--model={trained[0]}', f'--output={tmp_path}', *arguments)
    assert result.returncode == 1 and message in result.stderr
