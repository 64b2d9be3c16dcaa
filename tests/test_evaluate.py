"""The evaluation program on a model that has been prepared for, trained and saved like any other."""

import dataclasses
import json
import pathlib
import shutil

import jax
import programs
import pytest

from mlm_jax import config as config_lib
from mlm_jax import evaluate
from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import prepared_data
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.pretrained import batches, loading, sources
from mlm_jax.pretrained.model import tokens_with_masks
from mlm_jax.training import evaluation
from mlm_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures('one_device')


def test_held_out_loss_is_that_of_training(trained):
    workdir, mesh, model = trained
    with jax.set_mesh(mesh):
        metrics = evaluate.held_out_metrics(model, mesh)
    last = [line for line in read_metrics(workdir / 'metrics.jsonl') if 'eval/loss' in line][-1]
    assert metrics['loss'] == pytest.approx(last['eval/loss'], rel=1e-5)
    assert metrics['accuracy'] == pytest.approx(last['eval/accuracy'])
    assert metrics['loss'] < metrics['unigram_entropy'], 'context helps'


def test_the_machine_decides_how_many_rows_go_through_a_model_at_a_time(all_devices, trained, monkeypatch):
    """The run may have been trained on a pod, with batches that no host can hold; its masks depend on the row."""
    workdir, sizes, make = trained[0], [], evaluation.HeldOutSources

    def record(rows, weights, max_rows, batch_size, *rest):
        sizes.append(batch_size)
        return make(rows, weights, max_rows, batch_size, *rest)

    def metrics(num_devices, tokens, largest_logits):
        monkeypatch.setattr(batches, 'CPU_TOKENS', tokens)
        monkeypatch.setattr(batches, 'LARGEST_LOGITS', largest_logits)
        mesh = make_mesh(devices=jax.devices()[:num_devices])
        model = loading.load(workdir, mesh)
        model.config.batch_size = 2**20
        with jax.set_mesh(mesh):
            return evaluate.held_out_metrics(model, mesh)

    monkeypatch.setattr(evaluation, 'HeldOutSources', record)
    whole = metrics(1, 1024, batches.LARGEST_LOGITS)
    for other in (metrics(8, 64, batches.LARGEST_LOGITS), metrics(2, 1024, 1)):
        assert other == pytest.approx(whole, rel=1e-5)
    assert sizes == [32, 16, 2], 'rows of 32 tokens; 20 are held out'


def test_rows_of_another_tokenizer_are_refused(trained, monkeypatch):
    """Prepared anew in the same directory: the ids would mean other tokens, and the loss nothing."""
    _, mesh, model = trained
    data = model.prepared_data()
    manifest = dataclasses.replace(data.manifest, tokenizer_sha256='0' * 64)
    anew = dataclasses.replace(data, sources=(dataclasses.replace(data.sources[0], manifest=manifest),))
    monkeypatch.setattr(prepared_data, 'load', lambda of: anew)
    for needs in (model.held_out_rows, lambda: evaluate.held_out_metrics(model, mesh)):
        with pytest.raises(ConfigError, match='was trained with another tokenizer than that of .*, which was prepared'):
            needs()


def test_rows_are_found_where_they_are_now(trained, tmp_path):
    """A run of a pod names a directory that only its workers had, and a moved one a directory that is gone."""
    workdir, mesh, model = trained
    moved, rows = tmp_path / 'run', pathlib.Path(model.config.data.directory)
    shutil.copytree(workdir, moved)
    stored = config_lib.from_json((moved / 'config.json').read_text())
    stored.data.directory = '/mnt/of/the/workers'
    (moved / 'config.json').write_text(config_lib.to_json(stored))
    with pytest.raises(ConfigError, match="rows in '/mnt/of/the/workers', where there are none.*--data_directory"):
        loading.load(moved, mesh).held_out_rows()
    found = loading.load(moved, mesh, str(rows))
    assert (found.held_out_rows().read([0, 3]) == model.held_out_rows().read([0, 3])).all()
    short = shutil.copytree(rows, tmp_path / 'short')
    manifest = manifest_lib.load(short)
    manifest_lib.save(dataclasses.replace(manifest, sequence_length=16), short)
    with pytest.raises(ConfigError, match='was trained on rows of 32 tokens, and those of .*/short have 16'):
        loading.load(moved, mesh, str(short)).held_out_rows()


def test_fill_mask_gives_the_word_that_was_learned(trained):
    _, mesh, model = trained
    with jax.set_mesh(mesh):
        (candidates,) = model.fill_mask('the dog is green. the cat is [MASK].', top=3)
    assert len(candidates) == 3
    assert candidates[0][1] >= candidates[1][1]
    assert candidates[0][0].startswith('▁')
    assert 'red'.startswith(candidates[0][0].lstrip('▁'))


def test_a_mask_stands_for_a_word_with_its_space(trained):
    tokenizer = trained[2].tokenizer
    v = tokenizer.vocabulary
    ids = tokens_with_masks(tokenizer, '[MASK] dog is [MASK]. the[MASK]').tolist()
    assert ids[0] == v.cls_id and ids[-1] == v.sep_id and ids.count(v.mask_id) == 3
    assert tokenizer.decode([i for i in ids if i not in v.special_ids]) == 'dog is. the'
    assert tokens_with_masks(tokenizer, 'a [MASK] b [MASK]').tolist().count(v.mask_id) == 2


def test_texts_that_cannot_be_filled_are_refused(trained):
    _, _, model = trained
    with pytest.raises(ConfigError, match='holds no'):
        model.fill_mask('nothing to fill in')
    with pytest.raises(ConfigError, match='takes 32 at most'):
        model.fill_mask('cat ' * 100 + '[MASK]')
    pieces = model.tokenizer.vocabulary.num_ordinary
    with pytest.raises(ConfigError, match=f'top={pieces + 1}: the vocabulary has {pieces} pieces'):
        model.fill_mask('the cat is [MASK].', top=pieces + 1)


def test_a_missing_checkpoint_is_named(trained):
    workdir, mesh, _ = trained
    with pytest.raises(FileNotFoundError, match='no checkpoint of step 7 '):
        loading.load(f'{workdir}@7', mesh)


@pytest.mark.smoke
def test_the_program_prints_json_or_words(trained):
    workdir, _, model = trained
    result = programs.run('evaluate', f'--model={workdir}')
    assert json.loads(result.stdout)['step'] == model.step
    result = programs.run('evaluate', f'--model={workdir}', '--fill_mask=the cat is [MASK].')
    assert result.stdout.startswith('the cat is [MASK].\n    ') and '%' in result.stdout


def test_minimal_pairs_of_what_was_learned_are_right(trained, minimal_pairs):
    workdir, mesh, _ = trained
    with jax.set_mesh(mesh):
        report = evaluate.judge_minimal_pairs([sources.parse(str(workdir))], mesh, minimal_pairs, 100.0, False)
    (entry,) = report['models'].values()
    assert entry['accuracy'] > 0.75, 'guessing is rarely that good'
    assert (entry['pairs'], entry['ties']) == (30, 0)
    assert (entry['step'], entry['objective'], entry['model']) == (150, 'mlm', str(workdir))
    assert list(entry['fields']) == ['semantics', 'syntax'] and list(entry['paradigms']) == ['article', 'colour']
    assert report['setting']['paradigms'] == 2


@pytest.mark.smoke
def test_the_program_lays_models_side_by_side(trained, minimal_pairs, tmp_path):
    workdir, _, _ = trained
    shutil.copytree(workdir, tmp_path / 'again')
    result = programs.run(
        'evaluate', f'--model={workdir}', f'--model={tmp_path}/again', f'--blimp={minimal_pairs}',
        '--blimp_percent=50', '--blimp_within_word', f'--output={tmp_path}/out',
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / 'out' / 'blimp.json').read_text())
    one, two = report['models'].values()
    assert list(report['models']) == [workdir.name, 'again']
    assert {**one, 'model': ''} == {**two, 'model': ''}
    assert one['pairs'] == 15
    assert report['setting'] == {
        'directory': str(minimal_pairs), 'percent': 50.0, 'pairs': 15, 'paradigms': 2, 'within_word': True
    }  # fmt: skip
    shown = f'{100 * one["accuracy"]:.1f}'
    assert [line.split() for line in result.stdout.splitlines() if line.startswith('all ')] == [
        ['all', shown, shown, '—']
    ]
    rows = [line.split() for line in (tmp_path / 'out' / 'blimp.md').read_text().splitlines() if '| all ' in line]
    assert rows == [['|', 'all', '|', shown, '|', shown, '|', '—', '|']]
    assert (tmp_path / 'out' / 'blimp.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--blimp=data', '--fill_mask=a [MASK].'], '--blimp and --fill_mask ask for different results: give one'),
        (['--top=3'], '--top means nothing without --fill_mask: add --fill_mask, or leave out --top'),
        (['--top=3', '--blimp=data'], '--top means nothing without --fill_mask'),
        (['--blimp_percent=10'], '--blimp_percent means nothing without --blimp: add --blimp'),
        (['--data_directory=data', '--fill_mask=a [MASK].'], '--data_directory names held-out rows, which --blimp'),
        (['--blimp_within_word', '--fill_mask=a [MASK].'], '--blimp_within_word means nothing without --blimp'),
    ],
)
def test_flags_that_would_be_ignored_are_refused(arguments, message):
    result = programs.run('evaluate', '--model=runs/none', *arguments)
    assert result.returncode == 1 and result.stderr.startswith(f'error: {message}')


@pytest.mark.parametrize('kind', ['{}@7', 'average:{0}@150,{0}@7'])
def test_a_step_that_is_not_there_is_found_before_the_first_model_is_judged(trained, minimal_pairs, kind):
    workdir, mesh, _ = trained
    named = [sources.parse(text) for text in (str(workdir), kind.format(workdir))]
    with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 7 .*; the steps there are \[.*150\]'):
        evaluate.judge_minimal_pairs(named, mesh, minimal_pairs, 100.0, False, lambda _: pytest.fail('judged one'))


def test_what_is_judged_is_kept_when_a_later_model_fails(trained, minimal_pairs, tmp_path, monkeypatch):
    """Such as an encoder without a head, or one of rows that are too short."""
    workdir, load = trained[0], loading.load
    shutil.copytree(workdir, tmp_path / 'again')

    def fail_at_the_second(source, *rest):
        if source.directory != workdir:
            raise ConfigError('no head')
        return load(source, *rest)

    monkeypatch.setattr(loading, 'load', fail_at_the_second)
    arguments = [f'--model={workdir}', f'--model={tmp_path}/again', f'--blimp={minimal_pairs}', '--blimp_percent=50']
    result = programs.run('evaluate', *arguments, f'--output={tmp_path}/out')
    assert result.returncode == 1 and 'no head' in result.stderr
    assert list(json.loads((tmp_path / 'out' / 'blimp.json').read_text())['models']) == [workdir.name]
    assert {path.suffix for path in (tmp_path / 'out').iterdir()} == {'.json', '.md', '.png'}


def test_flags_and_directories_that_do_not_fit_are_refused(trained, minimal_pairs, tmp_path):
    workdir, mesh, _ = trained
    with pytest.raises(ConfigError, match='nowhere is not a directory'), jax.set_mesh(mesh):
        evaluate.judge_minimal_pairs([sources.parse(str(workdir))], mesh, tmp_path / 'nowhere', 100.0, False)
    with pytest.raises(ConfigError, match='not the workdir of a run'), jax.set_mesh(mesh):
        evaluate.judge_minimal_pairs([*map(sources.parse, (str(workdir), 'none'))], mesh, minimal_pairs, 100.0, False)
    result = programs.run('evaluate', f'--model={workdir}', f'--output={tmp_path}')
    assert result.returncode == 1 and result.stderr.startswith('error: --output is for the report of --blimp')
