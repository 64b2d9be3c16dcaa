"""Times what a user would do with a model, here and in other libraries: writes the data in this directory.

    python docs/results/interop_speed/measure.py --model=runs/mini --data=data/glue --work=runs/interop_speed

Each model is exported. Then, in turn, round after round, in one process and in float32: `encode` beside
sentence-transformers, on sentences of SST-2; and fine-tuning on SST-2 beside the Trainer of transformers, with the same
rows, batch and recipe. Parameters do not matter: a run of a single step will do. The machine should do nothing else.
Then: python docs/results/make.py
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import flags

from mlm_jax import finetune
from mlm_jax.comparing import experiment, measured
from mlm_jax.comparing.experiment import Column, Experiment, Row, Table
from mlm_jax.config import ConfigError, command_line
from mlm_jax.files import paths
from mlm_jax.finetuning import jobs as jobs_lib
from mlm_jax.finetuning import loop, problems
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.performance import speed, transformers_peer
from mlm_jax.pretrained import exporting, loading, sources
from mlm_jax.tasks import suites
from mlm_jax.training.metrics import ProgressLine

HERE = pathlib.Path(__file__).resolve().parent
TASK = 'glue/sst2'
VALIDATION_ROWS = 64  # scored once at the end of each training here, within its time; there, never
SEED = 1
# Threads of one library go on waiting busily for some time, OpenMP's for 0.2 s; the next to be timed must not share
# the cores with them.
PAUSE = 0.4
# Texts of a batch in sentence-transformers: its default, and four times that.
THEIR_BATCHES = (32, 128)


@dataclasses.dataclass
class Contestant:
    """What `speed.measure` times in turn with others.

    Attributes:
      name: in the table.
      once: does the work once; returns the seconds that it took.
      seconds: for each round so far; the first call, which compiles, comes before.
      first: the seconds of the first call, from its start to its end.
    """

    name: str
    once: Callable[[], float]
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    first: float | None = None

    def run(self, num_steps: int) -> float:
        """The seconds of the work, done `num_steps` times, for each."""
        time.sleep(PAUSE)
        start = time.perf_counter()
        seconds = sum(self.once() for _ in range(num_steps)) / num_steps
        if self.first is None:
            self.first = time.perf_counter() - start
        return seconds


def timed(function: Callable, *arguments) -> float:
    """Seconds of a call that returns when its work is done."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def encoders(label: str, model, directory: pathlib.Path, texts: Sequence[str]) -> tuple[list[Contestant], list]:
    """`encode` here and there, and the largest difference of the vectors of each from those here."""
    theirs = {size: transformers_peer.SentenceEncoder(directory, size) for size in THEIR_BATCHES}
    some = texts[:64]
    ours = model.encode(some)
    differences = [None, *(float(np.abs(peer.encode(some) - ours).max()) for peer in theirs.values())]
    if max(differences[1:]) > 1e-3:
        raise ConfigError(f'{label}: vectors differ by {max(differences[1:]):.2g}: other work is being timed there')
    contestants = [Contestant(f'{label}, here', lambda: timed(model.encode, texts))]
    contestants += [
        Contestant(f'{label}, sentence-transformers, batches of {size}', lambda peer=peer: timed(peer.encode, texts))
        for size, peer in theirs.items()
    ]
    return contestants, differences


def trainings(label: str, model, directory: pathlib.Path, data, recipe, mesh) -> list[Contestant]:
    """Fine-tuning here and there, on the same rows."""
    problem, _ = problems.make_problem(data, model.tokenizer, recipe, jobs_lib.max_length(model, recipe, label))
    texts = [e.texts[0] for e in problems.subset(data.splits['train'], recipe.max_train_examples)]
    rows = transformers_peer.encode(directory, texts, problem.inputs['train'])
    differ = sum(not np.array_equal(*pair) for pair in zip(rows.tokens, problem.inputs['train'].tokens, strict=True))
    if differ > len(texts) // 100:
        raise ConfigError(f'{label}: the tokenizers read {differ:,} of {len(texts):,} texts differently')

    def here() -> float:
        pad_id, encoder = model.tokenizer.vocabulary.pad_id, model.params['encoder']
        (outcome,) = loop.fine_tune(model.objective, encoder, pad_id, problem, recipe, [SEED], mesh)
        return outcome.seconds

    def there(same_batches: bool) -> float:
        return transformers_peer.fine_tune(directory, rows, problem.num_outputs, recipe, SEED, same_batches)[1]

    return [
        Contestant(f'{label}, here', here),
        Contestant(f'{label}, Trainer, the same batches', lambda: there(True)),
        Contestant(f'{label}, Trainer, rows at random (its default)', lambda: there(False)),
    ]


def quartiles(values: Sequence[float]) -> dict:
    """A cell: the median, and between which quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {'value': float(median), 'low': float(low), 'high': float(high)}


def rows_of(contestants: Sequence[Contestant], count: int, *more: Sequence) -> list[Row]:
    """A row for each; ratios are of the seconds in the same round, and the first is ours."""
    rows = []
    for number, c in enumerate(contestants):
        ratio = quartiles(np.array(c.seconds) / np.array(contestants[0].seconds)) if number else None
        speed_ = count / float(np.median(c.seconds))
        rows.append(Row(c.name, (quartiles(c.seconds), speed_, ratio, c.first, *(column[number] for column in more))))
    return rows


def columns(unit: str, *more: Column) -> tuple[Column, ...]:
    """Those of both tables."""
    return (
        Column('time, quartiles', 's', ',.2f'),
        Column('speed', unit, ',.0f'),
        Column('faster here by', '', ',.2f'),
        Column('first call', 's', ',.1f'),
        *more,
    )


def main() -> None:
    """Measures all models, and writes the experiment."""
    values, output = flags.FLAGS, pathlib.Path(flags.FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    facts = measured.of_this_process(transformers_peer.LIBRARIES)
    named = [sources.parse(name) for name in values.model]
    labels = values.label or finetune.make_labels(named)
    task = suites.read(TASK, suites.directories([values.data]))
    settings = jobs_lib.parse_settings(['epochs=1', 'pooling=cls', 'batch_size=32', 'learning_rate=1e-4'], 'set')
    recipe = jobs_lib.make_recipe(
        {}, settings, {'max_train_examples': 32 * values.updates, 'max_validation_examples': VALIDATION_ROWS}
    )
    transformers_peer.check(recipe)
    cores = transformers_peer.use_all_cores()
    texts = [e.texts[0] for e in problems.subset(task.splits['train'], values.sentences)]
    mesh, encoding, training = mesh_lib.make_mesh(), [], []
    with jax.set_mesh(mesh):
        models = {label: loading.load(source, mesh) for label, source in zip(labels, named, strict=True)}
        for label, model in models.items():
            directory = pathlib.Path(values.work).expanduser() / label
            if not directory.exists():
                exporting.write(model, exporting.plan(model), directory)
            contestants, differences = encoders(label, model, directory, texts)
            others = trainings(label, model, directory, task, recipe, mesh)
            progress = ProgressLine(values.rounds, unit=f'{label}: round')
            speed.measure([*contestants, *others], values.rounds, 1, progress=progress)
            encoding += rows_of(contestants, len(texts), differences)
            training += rows_of(others, recipe.max_train_examples)
    tokens = np.mean([len(row) + 2 for row in next(iter(models.values())).tokenizer.encode_batch(texts)])
    more = ''.join(
        f' --{name}={getattr(values, name)}'
        for name in ('rounds', 'updates', 'sentences')
        if getattr(values, name) != flags.FLAGS[name].default
    )
    made = Experiment(
        title='Speed beside transformers',
        question='How fast are encoding and fine-tuning beside the libraries that a user would take instead?',
        commands=(
            'python docs/results/interop_speed/measure.py '
            + ' '.join(f'--model=runs/{label}' for label in labels)
            + f' \\\n    --data=data/glue --work=runs/interop_speed{more}',
        ),
        needs='the extra measure',
        settings={
            'models': '; '.join(f'{label}: {describe(model)}' for label, model in models.items()) + '; float32',
            'encoding': f'{len(texts):,} sentences of SST-2, {tokens:.1f} tokens on average; mean of the tokens',
            'fine-tuning': f'{values.updates:,} updates with 32 rows of SST-2, AdamW, dropout {recipe.dropout:g}',
            'rounds': f'{values.rounds}, each contestant once in each, after a call that does not count; PyTorch with '
            f'{cores} threads',
        },
        tables=(
            Table(
                'encode',
                'Encoding, from texts to vectors. Ratios are medians within rounds, with quartiles.',
                columns('sentences/s', Column('vectors differ by at most', '', '.0e')),
                tuple(encoding),
            ),
            Table('finetune', 'Fine-tuning, likewise.', columns('rows/s'), tuple(training)),
        ),
        **facts,
    )
    experiment.write(experiment.with_words_of(made, output), output)
    print(output / experiment.METRICS)
    for row in (*encoding, *training):
        print(row.name, *(experiment.format_cell(cell, ',.3g') for cell in row.values), sep='  ')


def describe(model) -> str:
    """Layers × width, and the parameters of its encoder."""
    c = model.objective.config
    return f'{c.num_layers}×{c.width}, {sum(x.size for x in jax.tree.leaves(model.params["encoder"])):,} parameters'


if __name__ == '__main__':
    sources.define_flag('several are measured, one after another.')
    flags.DEFINE_multi_string('label', [], 'Name of a model, repeated in their order; made up unless given.')
    paths.define_flag('data', None, 'Directory of GLUE, with SST-2.', 'directory')
    flags.DEFINE_integer('rounds', 7, 'How often each is timed.', lower_bound=1)
    flags.DEFINE_integer('sentences', 2000, 'To encode.', lower_bound=64)
    flags.DEFINE_integer('updates', 50, 'Of fine-tuning.', lower_bound=1)
    paths.define_flag('work', None, 'Directory for exported models.', 'directory')
    paths.define_flag('output', str(HERE), 'Where the experiment is written.', 'directory')
    command_line.run(main, required=('model', 'data', 'work'))
