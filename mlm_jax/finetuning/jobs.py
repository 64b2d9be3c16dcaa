"""Jobs of fine-tuning: a task under a setting for a model, its seeds, where their results lie, and what is missing."""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

import jax
import tqdm
from jax.sharding import Mesh

from mlm_jax.config import command_line
from mlm_jax.config.model_checks import problem_of_dropout
from mlm_jax.files import atomic, progress
from mlm_jax.files.errors import ConfigError
from mlm_jax.finetuning import loop as fine_tuning
from mlm_jax.finetuning import problems
from mlm_jax.finetuning import report as fine_tuning_report
from mlm_jax.finetuning.loop import Diverged, Outcome
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.models.pooling import POOLINGS
from mlm_jax.pretrained.model import Model
from mlm_jax.tasks import glue
from mlm_jax.tasks.examples import TaskData
from mlm_jax.training.checkpoints import Snapshots
from mlm_jax.training.workdir import read_json

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
      origin: `source` and `step` of the model, `parameters`, a hash of them, and `data`, a hash of the task.
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
      ConfigError: for an unknown key, a value of the wrong type, and a key or a value that is given twice.
    """
    found: dict[str, tuple] = {}
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
        if key in found:
            several = ','.join(dict.fromkeys(map(_shown, (*found[key], *parsed))))
            raise ConfigError(f'--{flag}={text}: {key} is given twice; give it once, as --grid={key}={several}')
        shown = [_shown(value) for value in parsed]
        if twice := [value for value in shown if shown.count(value) > 1]:
            raise ConfigError(f'--{flag}={text}: the value {twice[0]} is given twice; leave out one')
        found[key] = parsed
    return found


def _shown(value: float | str) -> str:
    """A value of a recipe in the name of a setting."""
    return f'{value:g}' if isinstance(value, float) else str(value)


def make_recipe(task_recipe: Mapping, settings: Mapping[str, tuple], point: Mapping) -> Recipe:
    """The defaults, changed by the task, by the settings of all, and by a point of the grid.

    Raises:
      ConfigError: for values out of range.
    """
    recipe = Recipe(**{**task_recipe, **{key: values[0] for key, values in settings.items()}, **point})
    positive = ('learning_rate', 'eps', 'batch_size', 'epochs', 'evaluations_per_epoch', 'stride', 'max_answer')
    wrong = [key for key in positive if not 0 < getattr(recipe, key) < math.inf]
    wrong += [key for key in ('b1', 'b2', 'dropout') if not 0 <= getattr(recipe, key) < 1]
    wrong += [key for key in ('weight_decay', 'clip_norm', 'target_scale') if not getattr(recipe, key) >= 0]
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
    if problem := problem_of_dropout('dropout', recipe.dropout):
        raise ConfigError(problem)
    if wrong:
        raise ConfigError(f'out of range: {", ".join(f"{key}={getattr(recipe, key)}" for key in wrong)}')
    return recipe


def make_jobs(
    data: Mapping[str, TaskData], models: Mapping[str, Mapping], settings: Mapping, grid: Mapping
) -> list[Job]:
    """All jobs, task by task: so that each task is there for all models before the next begins.

    Args:
      data: by name.
      models: label → what tells the model from others of its name, such as `source` and `step`.
      settings: key → its value, for all.
      grid: key → its values.
    """
    digests = {name: task.digest() for name, task in data.items()}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [
        Job(model, name, ','.join(f'{key}={_shown(value)}' for key, value in point.items()) or 'default',
            make_recipe(task.task.recipe, settings, point), {**models[model], 'data': digests[name]})
        for name, task in data.items()
        for model in models
        for point in points
    ]  # fmt: skip


def finished_seeds(job: Job, seeds: Sequence[int], output: pathlib.Path) -> dict[int, dict]:
    """Seed → result.json without its curves, of those that are finished.

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
        there.setdefault('parameters', wanted.get('parameters'))  # earlier versions did not know them
        different = [f'  {k}: {there.get(k)!r} there, {v!r} now' for k, v in wanted.items() if there.get(k) != v]
        if different:
            raise ConfigError(
                f'{path.parent} was fine-tuned with another recipe, model or data:\n' + '\n'.join(different) + '\n'
                'Ask for what is there, choose another --output, or delete that directory'
            )
        found[seed] = {key: value for key, value in result.items() if key not in ('curve', 'train_losses')}
    return found


def max_length(model: Model, recipe: Recipe, label: str) -> int:
    """Tokens of the longest row; ConfigError where the model cannot read so many."""
    trained = model.max_length
    if recipe.max_length > trained and not model.takes_any_length:
        raise ConfigError(f'max_length={recipe.max_length}: {label} knows {trained} positions; set {trained} or less')
    return recipe.max_length or trained


def make_problem(job: Job, data: TaskData, model: Model, bar) -> problems.Problem:
    """The task made ready for the model; says what was dropped, mended or cut."""
    length = max_length(model, job.recipe, job.model)
    problem, notes = problems.make_problem(data, model.tokenizer, job.recipe, length, model.separators)
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
        repeats=model.repeats,
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


def write_report(finished: Mapping[Job, Mapping[int, dict]], seeds: Sequence[int], output: pathlib.Path) -> str:
    """Writes results.json, results.md, results.png and submissions; returns the Markdown.

    Args:
      finished: for each job, what `finished_seeds` returns; a job counts when all of its seeds are there.
      seeds: of each job.
      output: where the files are written.
    """
    report: dict = {}
    for job, results in finished.items():
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
        for model, entry in by_model.items() if suite == glue.SUITE and name else ():
            job = next(j for j in finished if (j.task, j.model, j.setting) == (task, model, entry['setting']))
            _write_submission(name, job.directory(output) / f'seed{entry["best_seed"]}', output / model / 'submission')
    return text


def _write_submission(name: str, seed: pathlib.Path, directory: pathlib.Path) -> None:
    for path in seed.glob('predictions_test*.jsonl'):
        lines = [json.loads(line) for line in path.read_bytes().split(b'\n') if line]
        answers = [next(iter(a.values())) if isinstance(a := line['prediction'], dict) else a for line in lines]
        directory.mkdir(parents=True, exist_ok=True)
        glue.write_submission(name, path.stem.removeprefix('predictions_'), answers, directory)


def check_jobs(jobs: Sequence[Job], data: Mapping[str, TaskData], models: Mapping[str, Model], mesh: Mesh) -> None:
    """Raises ConfigError for what would stop a job when its turn comes."""
    command_line.check_file_names({job.setting for job in jobs}, 'Give several --grid in several calls')
    for job in jobs:
        model = models[job.model]
        length = max_length(model, job.recipe, job.model)
        fine_tuning.check_batch(job.recipe, mesh)
        try:
            problems.check(data[job.task], model.tokenizer, job.recipe, length, model.separators)
        except ConfigError as error:
            raise ConfigError(f'{job.model} {job.task} {job.setting}: {error}') from error


def seeds_at_once(seeds: Sequence[int]) -> int:
    """How many seeds run side by side: one on a CPU, where more gain nothing; all on an accelerator."""
    return 1 if jax.default_backend() == 'cpu' else len(seeds)


def run_jobs(jobs, data, models, seeds, side_by_side: int, mesh, output) -> tuple[str, list[str]]:
    """Runs what is missing; the last report, and what is to be said of runs that diverged.

    Raises:
      ConfigError: when there are results of another recipe, from another model or on other data.
    """
    finished = {job: finished_seeds(job, seeds, output) for job in jobs}
    missing = {job: [seed for seed in seeds if seed not in finished[job]] for job in jobs}
    total, text, diverged = sum(_cost(job, data[job.task]) * len(few) for job, few in missing.items()), '', []
    with progress.bar(total=total, unit=' examples', unit_scale=True, disable=not total) as bar:
        for i, job in enumerate(jobs):
            if missing[job]:
                task, model = data[job.task], models[job.model]
                diverged += _run_seeds(job, task, model, missing[job], side_by_side, mesh, bar, output)
                finished[job] = finished_seeds(job, seeds, output)
            if i + 1 == len(jobs) or jobs[i + 1].task != job.task:
                text = write_report(finished, seeds, output)
    return text, diverged


def _run_seeds(job, data, model, seeds, side_by_side: int, mesh, bar, output) -> list[str]:
    """Runs seeds of a job, and those that ran beside one that diverged once more; what is to be said of that one."""
    problem, diverged = make_problem(job, data, model, bar), []
    groups = [seeds[start : start + side_by_side] for start in range(0, len(seeds), side_by_side)]
    while groups:
        some, done = groups.pop(0), bar.n
        snapshots, outcomes = Snapshots(job.unfinished(output, some)), []
        try:
            outcomes = run_job(job, data, model, problem, some, mesh, bar, snapshots)
        except Diverged as error:
            diverged.append(f'{job.model} {job.task} {job.setting}: {error}')
            bar.write(diverged[-1], file=sys.stderr)
            if others := [seed for seed in some if seed not in error.seeds]:
                groups.insert(0, others)
                bar.write(f'the seeds beside begin again: {", ".join(map(str, others))}', file=sys.stderr)
            advance(bar, done + _cost(job, data) * len(error.seeds) - bar.n)
        for outcome in outcomes:
            save(job, problem, outcome, output)
            best = outcome.metrics['validation'][problem.metric]
            bar.write(
                f'{job.model} {job.task} {job.setting} seed {outcome.seed}: {problem.metric} {best:.4f} after '
                f'{outcome.best_step:,} updates',
                file=sys.stderr,
            )
        snapshots.delete()
    return diverged
