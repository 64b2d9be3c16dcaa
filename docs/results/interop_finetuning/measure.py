"""Fine-tunes models of this package here, and exported in `transformers`: writes the data in this directory.

    python docs/results/interop_finetuning/measure.py --model=runs/mlm --model=runs/modern --data=data/glue \\
        --set=learning_rate=5e-4 --seeds=1,2,3 --work=runs/interop_finetuning

Each model is exported, and fine-tuned on SST-2 for one epoch: here, as `python -m mlm_jax.finetune` does, and with the
Trainer of transformers on its class for classification, with the same rows in the same batches and the same recipe.
What is finished under --work is not run again. Then: python docs/results/make.py interop_finetuning
"""

import json
import pathlib

import jax
import numpy as np
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax import finetune
from mlm_jax.comparing import experiment, measured
from mlm_jax.comparing.experiment import Column, Experiment, Row, Table
from mlm_jax.config import ConfigError, command_line
from mlm_jax.files import atomic, paths
from mlm_jax.files.statistics import mean_and_error
from mlm_jax.finetuning import jobs as jobs_lib
from mlm_jax.finetuning import problems
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.performance import transformers_peer
from mlm_jax.pretrained import exporting, loading, sources
from mlm_jax.tasks import suites
from mlm_jax.training import runtime

HERE = pathlib.Path(__file__).resolve().parent
TASK = 'glue/sst2'


def fine_tune_there(job, data, model, directory: pathlib.Path, seeds, output: pathlib.Path) -> dict:
    """Exports a model and fine-tunes it in transformers; seed → accuracy, and how many rows are read alike."""
    if not directory.exists():
        exporting.write(model, exporting.plan(model), directory)
    problem, _ = problems.make_problem(data, model.tokenizer, job.recipe, jobs_lib.max_length(model, job.recipe, ''))
    texts = {
        'train': [e.texts[0] for e in problems.subset(data.splits['train'], job.recipe.max_train_examples)],
        'validation': [e.texts[0] for e in data.splits['validation']],
    }
    rows = {split: transformers_peer.encode(directory, texts[split], problem.inputs[split]) for split in texts}
    pairs = [pair for split in rows for pair in zip(rows[split].tokens, problem.inputs[split].tokens, strict=True)]
    alike = sum(np.array_equal(theirs, ours) for theirs, ours in pairs)
    accuracy = {}
    for seed in seeds:
        path = output / f'seed{seed}.json'
        if not path.exists():
            trainer, seconds = transformers_peer.fine_tune(
                directory, rows['train'], problem.num_outputs, job.recipe, seed, same_batches=True
            )
            logits = transformers_peer.predict(trainer, rows['validation'])
            result = {'accuracy': problem.score('validation', logits)['accuracy'], 'seconds': seconds}
            result['class'] = type(trainer.model).__name__
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(path, json.dumps(result).encode())
        accuracy[seed] = json.loads(path.read_text(encoding='utf-8'))
        print(f'{job.model}, transformers, seed {seed}: {accuracy[seed]}', flush=True)
    return {'seeds': accuracy, 'alike': f'{alike:,} of {len(pairs):,}', 'trivial': problem.trivial['accuracy']}


def cell(accuracies) -> dict:
    """The mean of percents with their standard deviation; of one, without."""
    percents = [100 * value for value in accuracies]
    if len(percents) == 1:
        return {'value': percents[0]}
    return {'value': float(np.mean(percents)), 'error': float(np.std(percents, ddof=1))}


def row(label: str, ours: dict, theirs: dict, seeds) -> Row:
    """The row of a model."""
    pairs = [(ours[seed]['metrics']['validation']['accuracy'], theirs['seeds'][seed]['accuracy']) for seed in seeds]
    mean, error = mean_and_error([100 * (their - our) for our, their in pairs])
    difference = {'value': mean} if error is None else {'value': mean, 'error': error}
    here, there = (cell(side) for side in zip(*pairs, strict=True))
    there_class = theirs['seeds'][seeds[0]]['class']
    return Row(label, (there_class, 100 * theirs['trivial'], here, there, difference, theirs['alike']))


COLUMNS = (
    Column('class of transformers'),
    Column('trivial', format=',.1f'),
    Column('here', format=',.1f'),
    Column('transformers', format=',.1f'),
    Column('transformers − here', format='+,.1f'),
    Column('rows that both tokenizers read alike'),
)


def main() -> None:
    """Runs what is missing under --work, and writes the experiment."""
    values, output = flags.FLAGS, pathlib.Path(flags.FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    facts = measured.of_this_process(transformers_peer.LIBRARIES)
    work = pathlib.Path(values.work).expanduser()
    seeds = command_line.parse_seeds(values.seeds)
    named = [sources.parse(name) for name in values.model]
    labels = values.label or finetune.make_labels(named)
    settings = {'epochs': (1,), 'pooling': ('cls',), **jobs_lib.parse_settings(values.set, 'set')}
    data = {TASK: suites.read(TASK, suites.directories([values.data]))}
    runtime.use_compilation_cache(config_lib.default_config().compilation_cache)
    mesh = mesh_lib.make_mesh()
    rows = []
    with jax.set_mesh(mesh):
        models = {label: loading.load(source, mesh) for label, source in zip(labels, named, strict=True)}
        origins = {label: {'source': str(m.source), 'step': m.step} for label, m in models.items()}
        for job in jobs_lib.make_jobs(data, origins, settings, {}):
            transformers_peer.check(job.recipe)
            _, diverged = jobs_lib.run_jobs([job], data, models, seeds, 1, mesh, work / 'here')
            if diverged:
                raise ConfigError('not all runs came to their end: ' + '; '.join(diverged))
            ours = jobs_lib.finished_seeds(job, seeds, work / 'here')
            model, there = models[job.model], work / 'there' / job.model
            theirs = fine_tune_there(job, data[TASK], model, work / 'exported' / job.model, seeds, there)
            rows.append(row(job.model, ours, theirs, seeds))
    count = min(job.recipe.max_train_examples or len(data[TASK].splits['train']), len(data[TASK].splits['train']))
    given = ''.join(f' --set={text}' for text in values.set)
    made = Experiment(
        title='Exported models fine-tuned in transformers',
        question='Does a model that was trained here learn a task in `transformers` as well as it does here?',
        commands=(
            'python docs/results/interop_finetuning/measure.py '
            + ' '.join(f'--model=runs/{label}' for label in labels)
            + f' \\\n    --data=data/glue --seeds={",".join(map(str, seeds))}{given} --work=runs/interop_finetuning',
        ),
        needs='the extra measure',
        settings={
            'fine-tuning': f'SST-2, {count:,} training rows, one epoch of batches of {job.recipe.batch_size}; peak '
            f'learning rate {job.recipe.learning_rate:g}, {job.recipe.warmup_percent:g} % warm-up; state of [CLS]; '
            f'{len(data[TASK].splits["validation"]):,} validation rows',
        },
        seeds=tuple(seeds),
        tables=(
            Table(
                'accuracy',
                'Accuracy on the validation split, in percent: means ± standard deviations over seeds; differences, '
                'paired by seed, ± their standard errors.',
                COLUMNS,
                tuple(rows),
            ),
        ),
        **facts,
    )
    experiment.write(experiment.with_words_of(made, output), output)
    print(output / experiment.METRICS)


if __name__ == '__main__':
    sources.define_flag('several are measured.')
    flags.DEFINE_multi_string('label', [], 'Name of a model, repeated in their order; made up unless given.')
    paths.define_flag('data', None, 'Directory of GLUE, with SST-2.', 'directory')
    flags.DEFINE_list('seeds', ['1', '2', '3'], 'Of heads, orders of rows and dropout.')
    flags.DEFINE_multi_string('set', [], 'KEY=VALUE of the recipe (mlm_jax/finetuning/recipe.py); may be repeated.')
    paths.define_flag('work', None, 'Directory for exported models and runs.', 'directory')
    paths.define_flag('output', str(HERE), 'Where the experiment is written.', 'directory')
    command_line.run(main, required=('model', 'data', 'work'))
