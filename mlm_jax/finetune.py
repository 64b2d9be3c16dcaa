"""Fine-tunes trained encoders on downstream tasks: grids × seeds, tables, predictions.

    python -m mlm_jax.finetune --model=runs/mlm_mini --model=random:runs/mlm_mini --tasks=glue/sst2,glue/rte \\
        --data=glue=data/glue --seeds=1,2,3 --grid=learning_rate=1e-4,3e-4 --output=runs/mlm_mini/finetune

Models: the workdir of a run of any objective (WORKDIR or WORKDIR@STEP), hf:DIRECTORY, or random:SOURCE, the same
without what it has learned, drawn anew for each seed. Tasks: a suite (glue) or some of its tasks (glue/sst2); or files
of your own, with --train_file. Recipes are those of the tasks; --set=KEY=VALUE changes a key for all,
--grid=KEY=VALUE,VALUE,… tries several values. `Recipe` in mlm_jax/finetuning/recipe.py lists the keys.

The tables hold what the command asks for: for each task and model the setting with the best median on the validation
split, with the parameters that were best there. Started again, the program runs what is missing. The output holds
results.json, results.md, results.png, and <model>/<task>/<setting>/seed<k>/ with result.json and predictions;
<model>/submission is for GLUE's site.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import re
import statistics
import sys
from collections.abc import Mapping, Sequence

import jax
import tqdm
from absl import flags
from jax.sharding import Mesh

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError, command_line
from mlm_jax.files import atomic, paths, progress
from mlm_jax.finetuning import loop as fine_tuning
from mlm_jax.finetuning import problems
from mlm_jax.finetuning import report as fine_tuning_report
from mlm_jax.finetuning.loop import Outcome
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.models.pooling import POOLINGS
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import loading, sources
from mlm_jax.pretrained.model import Model
from mlm_jax.tasks import custom, glue, suites
from mlm_jax.tasks.examples import TaskData
from mlm_jax.training import runtime
from mlm_jax.training.checkpoints import Snapshots
from mlm_jax.training.workdir import held, read_json

RESULT_FILE = 'result.json'
_TYPES: dict[str, type] = {f.name: type(f.default) for f in dataclasses.fields(Recipe)}


@dataclasses.dataclass(frozen=True)
class Job:
    """One task under one setting for one model; its seeds run side by side.

    Attributes:
      model: its label.
      task: its name.
      setting: what of the grid it has, as 'key=value,…'; 'default' without a grid.
      recipe: all of it.
      origin: `source` and `step` of the model, `data`, a hash of the task.
    """

    model: str
    task: str
    setting: str
    recipe: Recipe
    origin: Mapping[str, str | int | None] = dataclasses.field(hash=False)

    def directory(self, output: pathlib.Path) -> pathlib.Path:
        """Where its seeds are."""
        return output / self.model / self.task.replace('/', '_') / self.setting

    def unfinished(self, output: pathlib.Path, seeds: Sequence[int]) -> pathlib.Path:
        """Where seeds that run side by side are kept until then, by all that they depend on."""
        digest = hashlib.sha256(json.dumps([dataclasses.asdict(self.recipe), dict(self.origin), [*seeds]]).encode())
        return self.directory(output) / f'unfinished_{digest.hexdigest()[:16]}'


def parse_settings(texts: Sequence[str], flag: str) -> dict[str, tuple]:
    """Key → values, from 'key=value,value,…'.

    Raises:
      ConfigError: for an unknown key, or a value of the wrong type.
    """
    found = {}
    for text in texts:
        key, _, values = text.partition('=')
        if key not in _TYPES:
            raise ConfigError(f'--{flag}={text}: there is no key {key!r}; there are {", ".join(_TYPES)}')
        kind = _TYPES[key]
        try:
            parsed = tuple(kind(float(value)) if kind is int else kind(value) for value in values.split(','))
            if kind is int and any(value != float(v) for value, v in zip(parsed, values.split(','), strict=True)):
                raise ValueError(text)
        except (ValueError, OverflowError):
            raise ConfigError(f'--{flag}={text}: expected {kind.__name__}') from None
        found[key] = parsed
    return found


def make_recipe(task_recipe: Mapping, settings: Mapping[str, tuple], point: Mapping) -> Recipe:
    """The defaults, changed by the task, by the settings of all, and by a point of the grid.

    Raises:
      ConfigError: for values out of range.
    """
    recipe = Recipe(**{**task_recipe, **{key: values[0] for key, values in settings.items()}, **point})
    positive = ('learning_rate', 'batch_size', 'epochs', 'evaluations_per_epoch', 'stride', 'max_answer')
    wrong = [key for key in positive if not 0 < getattr(recipe, key) < math.inf]
    wrong += [key for key in ('b1', 'b2', 'dropout') if not 0 <= getattr(recipe, key) < 1]
    wrong += [key for key in ('weight_decay', 'clip_norm', 'eps', 'target_scale') if not getattr(recipe, key) >= 0]
    wrong += ['warmup_percent'] if not 0 <= recipe.warmup_percent <= 100 else []
    wrong += ['head_dropout'] if not recipe.head_dropout < 1 else []
    wrong += ['class_weights'] if recipe.class_weights not in problems.CLASS_WEIGHTS else []
    wrong += ['pooling'] if recipe.pooling not in POOLINGS else []
    wrong += [
        key
        for key in ('patience', 'max_length', 'max_train_examples', 'max_validation_examples', 'max_query')
        if getattr(recipe, key) < 0
    ]
    wrong += ['layer_decay'] if not 0 < recipe.layer_decay <= 1 else []
    if wrong:
        raise ConfigError(f'out of range: {", ".join(f"{key}={getattr(recipe, key)}" for key in wrong)}')
    return recipe


def make_jobs(
    data: Mapping[str, TaskData], models: Mapping[str, Mapping], settings: Mapping, grid: Mapping
) -> list[Job]:
    """All jobs, task by task: so that each task is there for all models before the next begins.

    Args:
      data: by name.
      models: label → `source` and `step`.
      settings: key → its value, for all.
      grid: key → its values.
    """
    digests = {name: task.digest() for name, task in data.items()}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [
        Job(model, name, ','.join(f'{k}={v:g}' if isinstance(v, float) else f'{k}={v}' for k, v in point.items())
            or 'default', make_recipe(task.task.recipe, settings, point), {**models[model], 'data': digests[name]})
        for name, task in data.items()
        for model in models
        for point in points
    ]  # fmt: skip


def finished_seeds(job: Job, seeds: Sequence[int], output: pathlib.Path) -> dict[int, dict]:
    """Seed → result.json, of those that are finished.

    Raises:
      ConfigError: when one is there that was made with another recipe, from another model or on other data.
    """
    found = {}
    for seed in seeds:
        path = job.directory(output) / f'seed{seed}' / RESULT_FILE
        if not path.exists():
            continue
        result = read_json(path, 'Delete it, and that seed is fine-tuned again')
        there, wanted = {**result['recipe'], **result['origin']}, {**dataclasses.asdict(job.recipe), **job.origin}
        different = [f'  {k}: {there.get(k)!r} there, {v!r} now' for k, v in wanted.items() if there.get(k) != v]
        if different:
            raise ConfigError(
                f'{path.parent} was fine-tuned with another recipe, model or data:\n' + '\n'.join(different) + '\n'
                'Ask for what is there, choose another --output, or delete that directory'
            )
        found[seed] = result
    return found


def make_labels(models: Sequence[sources.Source]) -> list[str]:
    """Short names of models, as `sources.labels`, that can name directories."""
    return [re.sub(r'[^\w.+-]', '-', label) for label in sources.labels(models)]


def load_models(names: Mapping[str, sources.Source], mesh: Mesh) -> dict[str, Model]:
    """Label → model; ConfigError for one that cannot be fine-tuned."""
    models = {label: loading.load(source, mesh) for label, source in names.items()}
    for model in models.values():
        model.check_reads_once('fine-tuning')
    return models


def max_length(model: Model, recipe: Recipe, label: str) -> int:
    """Tokens of the longest row; ConfigError where the model cannot read so many."""
    trained = model.max_length
    if recipe.max_length > trained and not model.takes_any_length:
        raise ConfigError(f'max_length={recipe.max_length}: {label} knows {trained} positions; set {trained} or less')
    return recipe.max_length or trained


def make_problem(job: Job, data: TaskData, model: Model, bar) -> problems.Problem:
    """The task made ready for the model; says what was dropped, mended or cut."""
    length = max_length(model, job.recipe, job.model)
    problem, notes = problems.make_problem(data, model.tokenizer, job.recipe, length)
    for note, count in {**data.notes, **notes}.items():
        bar.write(f'{job.model} {job.task}: {count:,} {note}', file=sys.stderr)
    return problem


def run_job(
    job: Job,
    data: TaskData,
    model: Model,
    problem: problems.Problem,
    seeds: Sequence[int],
    mesh: Mesh,
    bar: tqdm.tqdm,
    snapshots: Snapshots,
) -> list[Outcome]:
    """Fine-tunes some seeds of a job side by side, from where they were interrupted."""
    bar.set_description(f'{job.model} {job.task} {job.setting} seed {",".join(map(str, seeds))}')
    per_update = _cost(job, data) / fine_tuning.num_updates(problem, job.recipe)

    def show(points_S):
        shown = {name: statistics.fmean(point[name] for point in points_S) for name in ('train_loss', problem.metric)}
        bar.set_postfix(shown, refresh=False)

    bar.set_postfix(refresh=False)
    encoder = None if model.source.is_random else model.params['encoder']  # each seed draws its own
    return fine_tuning.fine_tune(
        model.objective, encoder, model.tokenizer.vocabulary.pad_id, problem, job.recipe, seeds, mesh,
        lambda updates: advance(bar, updates * per_update * len(seeds)), show, snapshots,
    )  # fmt: skip


def _cost(job: Job, data: TaskData) -> float:
    """Examples that one seed passes."""
    count = len(data.splits['train'])
    return job.recipe.epochs * (min(count, job.recipe.max_train_examples) or count)


def save(job: Job, problem: problems.Problem, outcome: Outcome, output: pathlib.Path) -> None:
    """Writes predictions, and last result.json: where that is, the seed is finished."""
    directory = job.directory(output) / f'seed{outcome.seed}'
    directory.mkdir(parents=True, exist_ok=True)
    for split, outputs in outcome.outputs.items():
        problem.write(split, outputs, directory)
    result = {
        'task': job.task,
        'model': job.model,
        'origin': dict(job.origin),
        'seed': outcome.seed,
        'metric': problem.metric,
        'trivial': problem.trivial,
        'metrics': outcome.metrics,
        'best_step': outcome.best_step,
        'seconds': round(outcome.seconds, 3),
        'recipe': dataclasses.asdict(job.recipe),
        'curve': outcome.curve,
        'train_losses': [round(loss, 6) for loss in outcome.train_losses],
    }
    atomic.write_bytes(directory / RESULT_FILE, f'{json.dumps(_without_nan(result), indent=1)}\n'.encode())


def advance(bar: tqdm.tqdm, examples: float) -> None:
    """Moves a bar, and not past its end, where sums of fractions may lie."""
    bar.update(min(examples, bar.total - bar.n))


def _without_nan(value):
    """JSON has no NaN: a metric that is not defined is null."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_report(jobs: Sequence[Job], seeds: Sequence[int], output: pathlib.Path) -> str:
    """Writes results.json, results.md, results.png and submissions from what is finished; returns the Markdown."""
    report: dict = {}
    for job in jobs:
        results = finished_seeds(job, seeds, output)
        if len(results) == len(seeds):
            report.setdefault(job.task, {}).setdefault(job.model, {})[job.setting] = list(results.values())
    report = {
        task: {model: fine_tuning_report.summarize(settings) for model, settings in by_model.items()}
        for task, by_model in report.items()
    }
    if not report:
        return 'no run has come to its end'
    text = fine_tuning_report.markdown(report)
    atomic.write_bytes(output / 'results.json', f'{json.dumps(_without_nan(report), indent=2)}\n'.encode())
    atomic.write_bytes(output / 'results.md', text.encode())
    fine_tuning_report.draw(report, output / 'results.png')
    for task, by_model in report.items():
        suite, _, name = task.partition('/')
        for model, entry in by_model.items() if suite == glue.SUITE else ():
            job = next(j for j in jobs if (j.task, j.model, j.setting) == (task, model, entry['setting']))
            _write_submission(name, job.directory(output) / f'seed{entry["best_seed"]}', output / model / 'submission')
    return text


def _write_submission(name: str, seed: pathlib.Path, directory: pathlib.Path) -> None:
    for path in seed.glob('predictions_test*.jsonl'):
        lines = [json.loads(line) for line in path.read_bytes().split(b'\n') if line]
        answers = [next(iter(a.values())) if isinstance(a := line['prediction'], dict) else a for line in lines]
        directory.mkdir(parents=True, exist_ok=True)
        glue.write_submission(name, path.stem.removeprefix('predictions_'), answers, directory)


def read_tasks(values) -> dict[str, TaskData]:
    """Name → task, of --tasks and --train_file.

    Raises:
      ConfigError: when there is none, or one that cannot be read.
    """
    where = suites.directories(values.data)
    data = {name: suites.read(name, where) for name in suites.split_names(values.tasks)}
    if values.train_file:
        name = values.task_name or pathlib.Path(values.train_file).name.partition('.')[0]
        if not re.fullmatch(r'\w[\w.-]*', name):
            raise ConfigError(f'--task_name={name} names a directory; use letters, digits and . _ -')
        files = custom.Files(
            name, values.kind, values.train_file, values.validation_file, values.test_file,
            tuple(values.text_columns), tuple(values.target_columns), tuple(values.metrics), values.held_out_percent,
        )  # fmt: skip
        data[name] = custom.read(files)
    elif values.validation_file or values.test_file or values.task_name:
        raise ConfigError('a task of your own needs --train_file')
    if not data:
        raise ConfigError('nothing to fine-tune on: give --tasks, or --train_file for files of your own')
    return data


def check_names(labels: Sequence[str], tasks: Sequence[str], num_models: int) -> None:
    """Raises ConfigError for labels and names that would not each have a directory of their own."""
    if len(labels) != num_models or len(set(labels)) < len(labels):
        raise ConfigError(f'--label={", ".join(labels)}: give {num_models} different ones, or none')
    command_line.check_file_names([*labels, *tasks], 'Give a shorter --label or --task_name')
    strange = [name for name in labels if not re.fullmatch(r'\w[\w.+-]*', name)]
    if strange:
        raise ConfigError(f'--label={strange[0]}: a label names a directory; use letters, digits and . _ + -')
    directories = ['submission', *(name.replace('/', '_') for name in tasks)]
    if len(set(directories)) < len(directories):
        raise ConfigError(f'the tasks {", ".join(tasks)} need directories of their own: give --task_name another name')


def check_jobs(jobs: Sequence[Job], models: Mapping[str, Model], mesh) -> None:
    """Raises ConfigError for what would stop a job when its turn comes."""
    command_line.check_file_names({job.setting for job in jobs}, 'Give several --grid in several calls')
    for job in jobs:
        max_length(models[job.model], job.recipe, job.model)
        fine_tuning.check_batch(job.recipe, mesh)


def main() -> None:
    """Fine-tunes what is missing, and reports after each task."""
    values, output = flags.FLAGS, pathlib.Path(flags.FLAGS.output).expanduser()
    seeds = command_line.parse_seeds(values.seeds)
    named = [sources.parse(name) for name in values.model]
    labels = values.label or make_labels(named)
    settings, grid = parse_settings(values.set, 'set'), parse_settings(values.grid, 'grid')
    several = [key for key, given in settings.items() if len(given) > 1] or sorted(settings.keys() & grid.keys())
    if several:
        raise ConfigError(f'several values of {", ".join(several)}: give them to --grid')
    data = read_tasks(values)
    check_names(labels, list(data), len(values.model))
    runtime.use_compilation_cache(config_lib.default_config().compilation_cache)
    mesh = mesh_lib.make_mesh()
    # On a CPU seeds side by side gain nothing; an accelerator is fuller with them.
    side_by_side = values.parallel_seeds or (1 if jax.default_backend() == 'cpu' else len(seeds))
    with jax.set_mesh(mesh):
        models = load_models(dict(zip(labels, named, strict=True)), mesh)
        origins = {label: {'source': str(model.source), 'step': model.step} for label, model in models.items()}
        jobs = make_jobs(data, origins, settings, grid)
        check_jobs(jobs, models, mesh)
        with held(output):
            missing = {job: [s for s in seeds if s not in finished_seeds(job, seeds, output)] for job in jobs}
            text, diverged = run_jobs(jobs, missing, data, models, seeds, side_by_side, mesh, output)
    print(f'\n{text}\n{output / "results.md"}\n{output / "results.png"}')
    if diverged:
        raise FloatingPointError('not all runs came to their end:\n' + '\n'.join(diverged))


def run_jobs(jobs, missing, data, models, seeds, side_by_side: int, mesh, output) -> tuple[str, list[str]]:
    """Runs what is missing; the last report, and what is to be said of runs that diverged."""
    total, text, diverged = sum(_cost(job, data[job.task]) * len(few) for job, few in missing.items()), '', []
    with progress.bar(total=total, unit=' examples', unit_scale=True, disable=not total) as bar:
        for i, job in enumerate(jobs):
            model = models[job.model]
            if missing[job]:
                problem = make_problem(job, data[job.task], model, bar)
            for start in range(0, len(missing[job]), side_by_side):
                some = missing[job][start : start + side_by_side]
                snapshots = Snapshots(job.unfinished(output, some))
                try:
                    outcomes = run_job(job, data[job.task], model, problem, some, mesh, bar, snapshots)
                except FloatingPointError as error:
                    diverged.append(f'{job.model} {job.task} {job.setting}: {error}')
                    bar.write(diverged[-1], file=sys.stderr)
                    snapshots.delete()
                    continue
                for outcome in outcomes:
                    save(job, problem, outcome, output)
                    best = outcome.metrics['validation'][problem.metric]
                    bar.write(
                        f'{job.model} {job.task} {job.setting} seed {outcome.seed}: {problem.metric} {best:.4f} after '
                        f'{outcome.best_step:,} updates',
                        file=sys.stderr,
                    )
                snapshots.delete()
            if i + 1 == len(jobs) or jobs[i + 1].task != job.task:
                text = write_report(jobs, seeds, output)
    return text, diverged


def define_flags() -> None:
    """Defines the flags that `main` reads."""
    sources.define_flag('several are compared.')
    flags.DEFINE_multi_string('label', [], 'Name of a model, repeated in their order; made up unless given.')
    flags.DEFINE_list('tasks', [], 'Suites, or tasks of suites: glue, glue/sst2, …')
    paths.define_flag(
        'data', [], 'Where they lie: DIRECTORY, SUITE=DIRECTORY or SUITE/TASK=DIRECTORY; or tfds.', multiple=True
    )
    flags.DEFINE_list('seeds', ['1', '2', '3'], 'Of heads, orders of rows and dropout.')
    flags.DEFINE_multi_string('set', [], 'KEY=VALUE of the recipe, for all tasks; may be repeated.')
    flags.DEFINE_multi_string('grid', [], 'KEY=VALUE,VALUE,…: each is tried; with several, every combination.')
    flags.DEFINE_integer('parallel_seeds', None, 'Seeds side by side; all on accelerators, 1 on a CPU.', lower_bound=1)
    paths.define_flag('train_file', '', 'A task of your own: TSV, CSV or JSON lines.', 'file')
    paths.define_flag('validation_file', '', 'Its validation split; else a part of --train_file.', 'file')
    paths.define_flag('test_file', '', 'Its test split, with targets or without.', 'file')
    flags.DEFINE_string('task_name', '', 'Its name; that of the file unless given.')
    flags.DEFINE_enum('kind', 'classification', list(custom.METRICS), 'What is to be predicted.')
    flags.DEFINE_list('text_columns', ['text'], 'One column of text, or two.')
    flags.DEFINE_list('target_columns', ['label'], 'Column of the class; or of values, one or several.')
    flags.DEFINE_list('metrics', [], 'tasks/metrics.py has them; the first chooses.')
    flags.DEFINE_float('held_out_percent', 10.0, 'Of --train_file, without --validation_file.', 0.1, 90.0)
    paths.define_flag('output', None, 'Directory for runs, tables and pictures.', 'directory')


if __name__ == '__main__':
    define_flags()
    command_line.run(main, required=('model', 'output'))
