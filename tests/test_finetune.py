"""The fine-tuning program, from a trained model and a file of one's own to tables and predictions."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import programs
import pytest
import tqdm

from mlm_jax import finetune
from mlm_jax.config import ConfigError
from mlm_jax.finetuning import jobs
from mlm_jax.finetuning.loop import Diverged, Outcome
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.pretrained import loading, sources
from mlm_jax.tasks import suites
from mlm_jax.tasks.examples import Example, Task, TaskData
from mlm_jax.training import workdir

pytestmark = pytest.mark.usefixtures('one_device')

pytest.importorskip('sklearn')
WARM = ('red', 'white')


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    """Texts like those of the corpus that the model knows, with a class that one word decides."""
    root, rng = tmp_path_factory.mktemp('task'), np.random.default_rng(0)
    colours = ['red', 'green', 'blue', 'black', 'white']
    lines = []
    for i in range(200):
        animals, colour = rng.choice(['cat', 'dog', 'bird', 'fish'], 2), colours[i % 5]
        lines.append(f'the {animals[0]} and {animals[1]} {i} is {colour}.\t{"warm" if colour in WARM else "cold"}')
    (root / 'colours.tsv').write_text('\n'.join(['text\tlabel', *lines]) + '\n')
    (root / 'test.tsv').write_text('text\nthe cat and dog 7 is white.\nthe cat and dog 8 is blue.\n')
    return root  # fmt: skip


@pytest.fixture(scope='module')
def output(trained, table, tmp_path_factory):
    """What the program leaves behind, and its standard output and error."""
    where = tmp_path_factory.mktemp('finetune') / 'out'
    arguments = [
        f'--model={trained[0]}', f'--model=random:{trained[0]}', '--label=learned', '--label=random',
        f'--train_file={table / "colours.tsv"}', f'--test_file={table / "test.tsv"}', '--held_out_percent=25',
        '--seeds=1,2', '--set=batch_size=16', '--set=epochs=6', '--set=dropout=0', '--grid=learning_rate=1e-5,8e-3',
        '--parallel_seeds=2', f'--output={where}',
    ]  # fmt: skip
    result = programs.run('finetune', *arguments)
    assert result.returncode == 0, result.stderr
    return where, arguments, result


def test_tables_pictures_and_predictions(output):
    where, _, result = output
    report = json.loads((where / 'results.json').read_text())['colours']
    assert report['learned']['setting'] == 'learning_rate=0.008', 'the better one of the grid'
    assert report['learned']['settings_tried'].keys() == {'learning_rate=1e-05', 'learning_rate=0.008'}
    values = report['learned']['splits']['validation']['accuracy']
    assert values['median'] > 0.9 and set(values['by_seed']) == {'1', '2'}
    assert 'learned − random' in (where / 'results.md').read_text() and str(where / 'results.md') in result.stdout
    assert (where / 'results.png').read_bytes().startswith(b'\x89PNG')
    assert 'examples of train held out' in result.stderr
    assert not list(where.rglob('unfinished*'))
    seed = where / 'learned' / 'colours' / 'learning_rate=0.008' / 'seed1'
    lines = [json.loads(line) for line in (seed / 'predictions_test.jsonl').read_text().splitlines()]
    assert [line['prediction'] for line in lines] == ['warm', 'cold']
    assert lines[0]['target'] is None and 0.5 <= lines[0]['probability'] <= 1
    finished = json.loads((seed / 'result.json').read_text())
    assert finished['recipe']['epochs'] == 6 and len(finished['curve']) == 6


def test_started_again_it_runs_what_is_missing_only(output):
    where, arguments, _ = output
    seed1, seed2 = (where / 'learned' / 'colours' / 'learning_rate=0.008' / f'seed{k}' / 'result.json' for k in (1, 2))
    before, kept = json.loads(seed2.read_text()), seed1.stat().st_mtime_ns
    seed2.unlink()
    result = programs.run('finetune', *arguments)
    assert result.returncode == 0, result.stderr
    assert seed1.stat().st_mtime_ns == kept
    again = json.loads(seed2.read_text())
    assert again['train_losses'] == pytest.approx(before['train_losses'], rel=1e-3, abs=1e-4)


def test_another_recipe_in_the_same_place_is_refused(output):
    arguments = output[1]
    changed = [a.replace('--set=epochs=6', '--set=epochs=7') for a in arguments]
    result = programs.run('finetune', *changed)
    assert result.returncode == 1
    assert 'was fine-tuned with another recipe, model or data:\n  epochs: 6 there, 7 now' in result.stderr, (
        result.stderr
    )
    changed = [a.replace('--held_out_percent=25', '--held_out_percent=30') for a in arguments]
    result = programs.run('finetune', *changed)
    assert result.returncode == 1 and "  data: '" in result.stderr, result.stderr


def test_another_model_of_the_same_name_is_refused(output):
    """Trained anew, or exported into the same directory: its results would be mixed with those of the former one."""
    where, arguments, _ = output
    paths = list(where.rglob('result.json'))
    kept = [path.read_text() for path in paths]
    for path, text in zip(paths, kept, strict=True):
        result = json.loads(text)
        assert len(result['origin'].pop('parameters')) == 32
        path.write_text(json.dumps(result))
    assert programs.run('finetune', *arguments).returncode == 0, 'earlier versions did not know the parameters'
    other = json.loads(kept[0])
    other['origin']['parameters'] = 'x'
    paths[0].write_text(json.dumps(other))
    result = programs.run('finetune', *arguments)
    assert result.returncode == 1 and "  parameters: 'x' there, '" in result.stderr, result.stderr
    for path, text in zip(paths, kept, strict=True):
        path.write_text(text)


def test_help_lists_every_task():
    shown = ' '.join(programs.run('finetune', '--help').stdout.split())
    for suite, (tasks, _) in suites.SUITES.items():
        assert f'{suite}/{{{", ".join(tasks)}}}' in shown


def test_settings():
    parsed = jobs.parse_settings(['epochs=3,1e1', 'learning_rate=1e-4', 'class_weights=balanced'], 'grid')
    assert parsed == {'epochs': (3, 10), 'learning_rate': (1e-4,), 'class_weights': ('balanced',)}
    for text, message in (
        ('epoch=3', "there is no key 'epoch'; there are learning_rate"),
        ('epochs=2.5', 'expected int'),
        ('learning_rate=fast', 'expected float'),
    ):
        with pytest.raises(ConfigError, match=message):
            jobs.parse_settings([text], 'set')
    recipe = jobs.make_recipe({'epochs': 40, 'dropout': 0.0}, {'epochs': (7,)}, {'learning_rate': 1.0})
    assert (recipe.epochs, recipe.dropout, recipe.learning_rate, recipe.batch_size) == (
        7,
        0.0,
        1.0,
        Recipe().batch_size,
    )
    with pytest.raises(ConfigError, match='out of range: batch_size=0, dropout=1'):
        jobs.make_recipe({}, {'batch_size': (0,), 'dropout': (1.0,)}, {})
    with pytest.raises(ConfigError, match='dropout=0.001 would be no dropout at all'):
        jobs.make_recipe({}, {'dropout': (0.001,)}, {})
    for key, value in (('learning_rate', float('nan')), ('clip_norm', -1.0), ('warmup_percent', 101.0), ('b2', 1.0)):
        with pytest.raises(ConfigError, match=f'out of range: {key}='):
            jobs.make_recipe({}, {key: (value,)}, {})
    with pytest.raises(ConfigError, match='out of range: class_weights=rare'):
        jobs.make_recipe({}, {}, {'class_weights': 'rare'})
    with pytest.raises(ConfigError, match='out of range: pooling=max'):
        jobs.make_recipe({}, {}, {'pooling': 'max'})


def test_keys_and_values_that_are_given_twice_are_refused():
    """The last of them would count, or two jobs would have one directory."""
    for texts, message in (
        (['epochs=3', 'epochs=3,5'], 'epochs is given twice; give it once, as --grid=epochs=3,5'),
        (['epochs=3,3.0'], 'the value 3 is given twice'),
        (['learning_rate=1e-4,3e-4,1.0000001e-4'], 'the value 0.0001 is given twice'),
    ):
        with pytest.raises(ConfigError, match=message):
            jobs.parse_settings(texts, 'grid')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--tasks=glue/rte', '--metrics=f1'], '--metrics means nothing without --train_file: add --train_file, or'),
        (['--kind=regression'], '--kind means nothing without --train_file'),
        (['--test_file=a.csv'], '--test_file means nothing without --train_file'),
        (['--train_file=a.csv', '--data=glue'], '--data means nothing without --tasks'),
        (
            ['--train_file=a.csv', '--validation_file=b.csv', '--held_out_percent=5'],
            '--held_out_percent means nothing beside --validation_file: leave out one of them',
        ),
    ],
)
def test_flags_that_would_be_ignored_are_refused(arguments, message):
    result = programs.run('finetune', '--model=runs/none', '--output=runs/none', *arguments)
    assert result.returncode == 1 and result.stderr.startswith(f'error: {message}'), result.stderr


def test_an_unfinished_run_is_known_by_all_that_it_depends_on(tmp_path):
    job = jobs.Job('mlm', 'glue/rte', 'default', Recipe(), {'source': 'runs/mlm', 'step': 7, 'data': 'abc'})
    others = [
        dataclasses.replace(job, recipe=Recipe(learning_rate=1.0)),
        dataclasses.replace(job, origin={**job.origin, 'step': 8}),
    ]
    places = {other.unfinished(tmp_path, [1, 2]) for other in (job, *others)} | {job.unfinished(tmp_path, [1])}
    assert len(places) == 4 and {place.parent for place in places} == {job.directory(tmp_path)}
    assert dataclasses.replace(job).unfinished(tmp_path, [1, 2]) in places


def test_a_model_of_repeated_tokens_reads_them_repeated(trained, monkeypatch):
    _, mesh, model = trained
    given = []
    monkeypatch.setattr(jobs.fine_tuning, 'fine_tune', lambda *args, **options: given.append(options))
    monkeypatch.setattr(jobs.fine_tuning, 'num_updates', lambda *args: 1)
    monkeypatch.setitem(model.config.masking, 'repeats', 2)
    data = types.SimpleNamespace(splits={'train': [None]})
    with tqdm.tqdm(total=1) as bar:
        jobs.run_job(jobs.Job('it', 'mine', 'default', Recipe(), {}), data, model, None, [1], mesh, bar, None)
    assert given == [{'repeats': 2}]


@pytest.fixture
def run_jobs(trained, tmp_path, monkeypatch):
    """(name of the task, seeds that diverge) → what `jobs.run_jobs` returns, with 4 seeds; their groups; results read.

    Nothing is trained.
    """
    _, mesh, model = trained
    groups, read = [], []

    def fine_tune(objective, encoder, pad_id, problem, recipe, seeds, mesh, progress, *rest, bad, **options):
        groups.append(list(seeds))
        progress(1)
        if diverged := [seed for seed in seeds if seed in bad]:
            raise Diverged('the loss', diverged[:1], 1)
        outputs = np.zeros((len(problem.inputs['validation'].tokens), 2), np.float32)
        return [
            Outcome(seed, {'validation': {'accuracy': seed / 10}}, {'validation': outputs}, 1, [], [0.5], 0.1)
            for seed in seeds
        ]

    def run(name, *bad):
        monkeypatch.setattr(jobs.fine_tuning, 'fine_tune', functools.partial(fine_tune, bad=bad))
        examples = [Example(str(i), (f'the cat {i}',), (i % 2,)) for i in range(8)]
        task = Task(name, 'classification', ('a', 'b'), ('accuracy',))
        data = {name: TaskData(task, {'train': examples, 'validation': examples})}
        found = jobs.make_jobs(data, {'it': {'source': 'it'}}, {}, {})
        return jobs.run_jobs(found, data, {'it': model}, [1, 2, 3, 4], 3, mesh, tmp_path)

    monkeypatch.setattr(jobs, 'read_json', lambda path, cure: read.append(path) or workdir.read_json(path, cure))
    return run, groups, read


def test_seeds_beside_one_that_diverges_are_trained_again(run_jobs, tmp_path, capsys):
    run, groups, _ = run_jobs
    text, diverged = run('mine', 1, 3)
    assert groups == [[1, 2, 3], [2, 3], [2], [4]]
    assert [words.partition(':')[2].partition(' is not')[0] for words in diverged] == [
        ' the loss of seed 1', ' the loss of seed 3',
    ]  # fmt: skip
    assert text == 'no run has come to its end' and 'the seeds beside begin again: 2, 3\n' in capsys.readouterr().err
    assert sorted(path.parent.name for path in tmp_path.rglob('result.json')) == ['seed2', 'seed4']
    assert not list(tmp_path.rglob('unfinished*'))


def test_each_result_is_read_once_before_the_work_and_once_behind_it(run_jobs):
    run, groups, read = run_jobs
    run('mine')
    assert len(read) == 4
    run('mine')
    assert len(read) == 8 and len(groups) == 2, 'nothing was missing'


def test_a_task_of_my_own_may_be_called_glue(run_jobs, tmp_path):
    run, _, _ = run_jobs
    assert '| glue' in run('glue')[0] and not (tmp_path / 'it' / 'submission').exists()


def test_progress_ends_at_its_end():
    with tqdm.tqdm(total=0.3, bar_format='{bar}') as bar:  # a warning beyond 100 %, and warnings are errors
        for _ in range(3):
            jobs.advance(bar, 0.1)
        bar.refresh()


def test_a_cut_result_is_named_with_its_cure(tmp_path):
    job = jobs.Job('mlm', 'mine', 'default', Recipe(), {'source': 'runs/mlm', 'step': 7, 'data': 'abc'})
    path = job.directory(tmp_path) / 'seed1' / jobs.RESULT_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"task": "mi')
    with pytest.raises(ConfigError, match=r'seed1/result.json is damaged: .* Delete it, and that seed is fine-tuned'):
        jobs.finished_seeds(job, [1], tmp_path)


def test_names_of_directories():
    finetune.check_names(['a', 'b'], ['glue/rte', 'mine'], 2)
    for labels, tasks, message in (
        (['a'], [], 'give 2 different ones'),
        (['a', '../b'], [], r'--label=\.\./b: a label names a directory'),
        (['a' * 256, 'b'], [], 'has 256 bytes, and would name a directory'),
        (['a', 'b'], ['glue/rte', 'glue_rte'], 'the tasks glue/rte, glue_rte need directories of their own'),
    ):
        with pytest.raises(ConfigError, match=message):
            finetune.check_names(labels, tasks, 2)


def test_models_by_name(trained):
    _, _, model = trained
    named = [sources.parse(text) for text in ('/a/x', 'random:/a/x', '/b/x', '/b/x@7')]
    named += [sources.parse(f'average:/a/x@1{w},/b/x@1{w and ":3"}') for w in ('', ':2')]
    labels = finetune.make_labels(named)
    assert labels == ['a-x', 'random-a-x', 'b-x', 'b-x-7', 'average-a-x-1+b-x-1', 'average-a-x-1-2+b-x-1-3']
    finetune.check_names(labels, [], len(named))
    with pytest.raises(ConfigError, match='max_length=64: it knows 32 positions'):
        jobs.max_length(model, Recipe(max_length=64), 'it')
    assert jobs.max_length(model, Recipe(), 'it') == 32


@pytest.mark.parametrize(
    ('kind', 'setting', 'message'),
    [
        ('classification', {'max_length': 5}, 'max_length=5 leaves no room for text beside 4 special tokens'),
        ('multilabel', {'max_validation_examples': 1}, 'roc_auc is undefined on the validation split'),
        ('span', {}, 'asks for spans of a text, and the tokenizer of this model does not tell'),
    ],
)
def test_what_fits_no_job_is_found_before_the_first_one(trained, kind, setting, message):
    _, mesh, model = trained
    pairs = [Example(str(i), ('the cat', 'the dog'), (float(i), float(i))) for i in range(2)]
    metrics = {'classification': ('accuracy',), 'multilabel': ('roc_auc',), 'span': ('f1',)}[kind]
    data = {'mine': TaskData(Task('mine', kind, ('a', 'b'), metrics), {'train': pairs, 'validation': pairs})}
    model = dataclasses.replace(model, tokenizer=types.SimpleNamespace(vocabulary=model.tokenizer.vocabulary))
    found = jobs.make_jobs(data, {'it': {}}, {}, {key: (value,) for key, value in setting.items()})
    with pytest.raises(ConfigError, match=f'it mine {found[0].setting}: .*{message}'):
        jobs.check_jobs(found, data, {'it': model}, mesh)


def test_a_checkpoint_of_hugging_face_needs_its_tokenizer(tmp_path):
    with jax.set_mesh(mesh := make_mesh()), pytest.raises((ConfigError, FileNotFoundError), match=str(tmp_path)):
        loading.load(f'hf:{tmp_path}', mesh)
