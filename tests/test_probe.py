"""The analyses, on checkpoints of every objective."""

import copy
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from mlm_jax import probe, train
from mlm_jax.analysis.effective_rank import effective_rank
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.shards import Shards
from mlm_jax.parallel.mesh import batch_sharding
from mlm_jax.training import loading
from mlm_jax.training.evaluation import HeldOut
from mlm_jax.training.metrics import read_metrics

NUM_ROWS = 20


@pytest.fixture(scope='module')
def mae_lm(animals_config, trained, tmp_path_factory):
    """A few steps of MAE-LM on the same rows: (workdir, model)."""
    config = copy.deepcopy(animals_config)
    config.objective, config.total_steps = 'mae_lm', 5
    workdir = tmp_path_factory.mktemp('mae_lm') / 'mae_lm'
    train.train(config, workdir)
    return workdir, loading.load(workdir, trained[1])


def test_ranks_of_unmasked_rows_equal_those_of_all_representations_at_once(trained):
    _, mesh, model = trained
    with jax.set_mesh(mesh):
        sums = probe.rank_sums(model, mesh, NUM_ROWS)
    tokens = Shards(model.config.data.directory, 'validation').read(np.arange(NUM_ROWS))
    segments = segment_ids(tokens, model.tokenizer.vocabulary)
    hidden, _ = probe.layer_outputs(model, jax.device_get(model.params), tokens, segments, method='encode')
    for layer in range(2):
        rows = np.asarray(hidden[layer], np.float64)[segments > 0]
        for centred in (False, True):
            share = np.linalg.svd(rows - rows.mean(0) * centred, compute_uv=False) ** 2
            expected = np.argmax(np.cumsum(share) / share.sum() >= 0.9) + 1
            assert effective_rank(sums.spectra(centred), 0.9)[layer, 3] == expected


def test_each_token_is_counted_once_in_its_group(trained, mae_lm):
    _, mesh, model = trained
    tokens = Shards(model.config.data.directory, 'validation').read(np.arange(NUM_ROWS))
    real = int((tokens != model.tokenizer.vocabulary.pad_id).sum())
    with jax.set_mesh(mesh):
        kept, masked, everything, unmasked = probe.rank_sums(model, mesh, NUM_ROWS).count_G
        assert kept + masked == everything == unmasked == real
        assert 0.08 * real < masked < 0.16 * real
        mae_kept, mae_masked, mae_all, _ = probe.rank_sums(mae_lm[1], mesh, NUM_ROWS).count_G
    assert (mae_kept, mae_masked, mae_all) == (kept, 0, kept), 'the same masks; [MASK] stays out of the encoder'


def test_the_program_lays_checkpoints_over_each_other(trained, mae_lm, tmp_path):
    command = [sys.executable, '-m', 'mlm_jax.probe', 'effective_rank', f'--workdir={trained[0]}']
    command += [f'--workdir={mae_lm[0]}', f'--output={tmp_path}', f'--rows={NUM_ROWS}', '--thresholds=0.5,0.9']
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / 'effective_rank.json').read_text())
    assert set(report) == {'run', 'mae_lm'}
    assert set(report['run']['curves']) == set(probe.CURVES)
    for by_threshold in (report['run']['curves'][probe.CURVES[0]][kind] for kind in ('centred', 'uncentred')):
        assert set(by_threshold) == {'0.5', '0.9'}
        assert all(0 < low <= high <= 64 for low, high in zip(by_threshold['0.5'], by_threshold['0.9'], strict=True))
    assert (tmp_path / 'effective_rank.png').stat().st_size > 10_000
    assert 'mae_lm' in result.stdout


def test_gradient_variance_from_the_start_to_the_newest_checkpoint(mae_lm, tmp_path):
    command = [sys.executable, '-m', 'mlm_jax.probe', 'gradient_variance', f'--workdir={mae_lm[0]}', '--steps=0,5']
    command += [f'--output={tmp_path}', '--texts=8', '--segments=3', '--draws=3']
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / 'gradient_variance.json').read_text())
    assert [entry['step'] for entry in report.values()] == [0, 5]
    for label, entry in report.items():
        assert label in result.stdout
        assert len(entry['hamming_distance']) == len(entry['overlap']) == len(entry['covariance_over_variance'])
        assert entry['hamming_distance'] == sorted(entry['hamming_distance'], reverse=True)
        assert entry['variance'][0] > 0 and entry['own_variance'][0] > 0 and entry['texts'] == 8
        covariance = [value for value, _ in entry['covariance_over_variance']]
        assert covariance[0] < covariance[2] < covariance[-1], 'it falls with the distance'
    assert (tmp_path / 'gradient_variance.png').stat().st_size > 10_000


def test_step_0_is_where_training_started(trained):
    """Its held-out loss is the one that the run wrote before its first update."""
    workdir, mesh, _ = trained
    first = loading.load(workdir, mesh, step=0)
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
        ([], 'say what to probe'),
        (['rank'], 'say what to probe'),
        (['effective_rank', '--workdir=x'], 'output'),
        (['effective_rank', '--workdir=nowhere', '--output={tmp}'], 'not the workdir of a run'),
        (['effective_rank', '--workdir=x', '--output={tmp}', '--thresholds=0,2'], 'must lie above 0'),
        (['gradient_variance', '--workdir=x', '--output={tmp}', '--steps=0,last'], 'must be steps of checkpoints'),
    ],
)
def test_wrong_command_lines_end_in_one_message(tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    command = [sys.executable, '-m', 'mlm_jax.probe', *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert message in result.stderr and 'Traceback' not in result.stderr
