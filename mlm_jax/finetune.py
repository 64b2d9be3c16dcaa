"""Fine-tunes trained encoders on downstream tasks: grids × seeds, tables, predictions.

    python -m mlm_jax.finetune --model=runs/mlm_mini --model=random:runs/mlm_mini --tasks=glue/sst2,glue/rte \\
        --data=glue=data/glue --seeds=1,2,3 --grid=learning_rate=1e-4,3e-4 --output=runs/mlm_mini/finetune

Models: the workdir of a run of any objective (WORKDIR or WORKDIR@STEP), hf:DIRECTORY or hf:NAME, random:SOURCE, the
same without what it has learned, drawn anew for each seed, ema:WORKDIR, or average:SOURCE,SOURCE,… Tasks: a suite, such
as glue, or some of its tasks, such as glue/sst2, all of which --help lists at --tasks; or files of your own, with
--train_file. Recipes are those of the tasks; --set=KEY=VALUE changes a key for all, --grid=KEY=VALUE,VALUE,… tries
several values. `Recipe` in mlm_jax/finetuning/recipe.py lists the keys.

The tables hold what the command asks for: for each task and model the setting with the best median on the validation
split, with the parameters that were best there. Started again, the program runs what is missing. The output holds
results.json, results.md, results.png, and <model>/<task>/<setting>/seed<k>/ with result.json and predictions;
<model>/submission is for GLUE's site.
"""

import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError, command_line
from mlm_jax.files import buckets, paths
from mlm_jax.finetuning.jobs import check_jobs, make_jobs, parse_settings, run_jobs, seeds_at_once
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import loading, sources
from mlm_jax.pretrained.model import Model
from mlm_jax.tasks import custom, suites
from mlm_jax.tasks.examples import TaskData
from mlm_jax.training import runtime
from mlm_jax.training.workdir import held


def make_labels(models: Sequence[sources.Source]) -> list[str]:
    """Short names of models, as `sources.labels`, that can name directories."""
    return [re.sub(r'[^\w.+-]', '-', label) for label in sources.labels(models)]


def origin(model: Model) -> dict[str, Any]:
    """What tells a model from others of its name: results of another one are not gone on with."""
    return {'source': sources.pin(str(model.source)), 'step': model.step, 'parameters': model.fingerprint()}


def check_flags(values) -> None:
    """Raises ConfigError for flags of tasks that would be ignored."""
    own = ('validation_file', 'test_file', 'task_name', 'kind', 'text_columns', 'target_columns', 'metrics')
    command_line.check_companions(dict.fromkeys((*own, 'held_out_percent'), 'train_file') | {'data': 'tasks'})
    if command_line.is_given('held_out_percent') and values.validation_file:
        raise ConfigError('--held_out_percent means nothing beside --validation_file: leave out one of them')


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
        if words := custom.describe_positive_class(data[name].task):
            print(words, file=sys.stderr)
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


def main() -> None:
    """Fine-tunes what is missing, and reports after each task."""
    values, output = flags.FLAGS, buckets.path(flags.FLAGS.output).expanduser()
    check_flags(values)
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
    side_by_side = values.parallel_seeds or seeds_at_once(seeds)
    with jax.set_mesh(mesh):
        models = {label: loading.load(source, mesh) for label, source in zip(labels, named, strict=True)}
        origins = {label: origin(model) for label, model in models.items()}
        jobs = make_jobs(data, origins, settings, grid)
        check_jobs(jobs, data, models, mesh)
        with held(output):
            text, diverged = run_jobs(jobs, data, models, seeds, side_by_side, mesh, output)
    print(f'\n{text}\n{output / "results.md"}\n{output / "results.png"}')
    if diverged:
        raise FloatingPointError('not all runs came to their end:\n' + '\n'.join(diverged))


def define_flags() -> None:
    """Defines the flags that `main` reads."""
    sources.define_flag('several are compared.')
    flags.DEFINE_multi_string('label', [], 'Name of a model, repeated in their order; made up unless given.')
    flags.DEFINE_list('tasks', [], f'Suites, such as glue, or tasks of suites, such as glue/sst2: {suites.describe()}.')
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
