"""Reads the nine tasks of GLUE (Wang et al. 2019, arXiv 1804.07461) from its download, from JSON lines, or from TFDS.

Each task has its own directory, named as in the download (`SST-2`) or as in TFDS (`sst2`), with the files `train.tsv`,
`dev.tsv` and `test.tsv` (MNLI: `dev_matched.tsv` and so on), or `.jsonl` files of the same names. A JSON line has the
fields of the TSV file, or `text`, or `a` and `b`; and `label` (STS-B: `score`). The test sets of the download have no
labels; gluebenchmark.com accepts predictions for them.
"""

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlm_jax.data import tfds_sets
from mlm_jax.files import atomic, buckets, records
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks.examples import Example, Task, TaskData, class_number, hold_out, number

SUITE = 'glue'
HELD_OUT_PERCENT = 10.0  # of the train split, if a task has no validation set

_MAX_SCORE = 5.0  # of STS-B
_VALIDATION, _TEST = ('dev', 'validation'), ('test',)
# Split → possible names of its file or TFDS split; the first name that exists is used.
_SPLITS = {'train': ('train',), 'validation': _VALIDATION, 'test': _TEST}
_MNLI_SPLITS = {
    'train': ('train',),
    'validation': ('dev_matched', 'validation_matched', *_VALIDATION),
    'validation_mismatched': ('dev_mismatched', 'validation_mismatched'),
    'test': ('test_matched', *_TEST),
    'test_mismatched': ('test_mismatched',),
}


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where the data of a GLUE task is found, and how its files are read.

    Attributes:
      task: the task.
      directory: the name of its directory in the download.
      texts: the columns with text.
      submission: split → the name of the file of predictions that the benchmark accepts.
      label: the column with the label.
      tfds_texts: the TFDS features with text, if their names differ from `texts`.
      headless: the column names, if the files have no line of column names.
      splits: split → the possible names of its file.
    """

    task: Task
    directory: str
    texts: tuple[str, ...]
    submission: dict[str, str]
    label: str = 'label'
    tfds_texts: tuple[str, ...] = ()
    headless: tuple[str, ...] = ()
    splits: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: _SPLITS)


def _classification(name: str, labels: Sequence[str], *metrics: str) -> Task:
    return Task(f'{SUITE}/{name}', 'classification', tuple(labels), metrics)


_ENTAILMENT = ('entailment', 'not_entailment')
_SENTENCES = ('sentence1', 'sentence2')
SOURCES = {
    'cola': _Source(
        _classification('cola', ('unacceptable', 'acceptable'), 'matthews', 'accuracy'),
        'CoLA', ('sentence',), {'test': 'CoLA.tsv'}, headless=('source', 'label', 'star', 'sentence'),
    ),
    'sst2': _Source(
        _classification('sst2', ('negative', 'positive'), 'accuracy'), 'SST-2', ('sentence',), {'test': 'SST-2.tsv'}
    ),
    'mrpc': _Source(
        _classification('mrpc', ('not_equivalent', 'equivalent'), 'f1', 'accuracy'),
        'MRPC', ('#1 String', '#2 String'), {'test': 'MRPC.tsv'}, label='Quality', tfds_texts=_SENTENCES,
        splits={'train': ('train', 'msr_paraphrase_train'), 'validation': _VALIDATION,
                'test': (*_TEST, 'msr_paraphrase_test')},
    ),
    'stsb': _Source(
        Task(
            f'{SUITE}/stsb', 'regression', ('score',), ('pearson_spearman', 'pearson', 'spearman'),
            {'target_scale': _MAX_SCORE},
        ),
        'STS-B', _SENTENCES, {'test': 'STS-B.tsv'}, label='score',
    ),
    'qqp': _Source(
        _classification('qqp', ('not_duplicate', 'duplicate'), 'f1', 'accuracy'),
        'QQP', ('question1', 'question2'), {'test': 'QQP.tsv'}, label='is_duplicate',
    ),
    'mnli': _Source(
        _classification('mnli', ('entailment', 'neutral', 'contradiction'), 'accuracy'),
        'MNLI', _SENTENCES, {'test': 'MNLI-m.tsv', 'test_mismatched': 'MNLI-mm.tsv'}, label='gold_label',
        tfds_texts=('premise', 'hypothesis'), splits=_MNLI_SPLITS,
    ),
    'qnli': _Source(
        _classification('qnli', _ENTAILMENT, 'accuracy'), 'QNLI', ('question', 'sentence'), {'test': 'QNLI.tsv'}
    ),
    'rte': _Source(_classification('rte', _ENTAILMENT, 'accuracy'), 'RTE', _SENTENCES, {'test': 'RTE.tsv'}),
    'wnli': _Source(
        _classification('wnli', ('not_entailment', 'entailment'), 'accuracy'), 'WNLI', _SENTENCES, {'test': 'WNLI.tsv'}
    ),
}  # fmt: skip


def read(name: str, directory: str) -> TaskData[Example]:
    """Reads a task.

    Args:
      name: a key of `SOURCES`.
      directory: the directory of all tasks or of this task, or 'tfds' for the data set in TFDS_DATA_DIR.

    Raises:
      ConfigError: if files are missing or do not belong to the task.
    """
    source = SOURCES[name]
    notes: Counter[str] = Counter()
    if directory == 'tfds':
        found = {split: _read_tfds(source, name, names) for split, names in source.splits.items()}
    else:
        home = _home(source, name, buckets.path(directory).expanduser())
        found = {split: _read_split(source, home, names, split, notes) for split, names in source.splits.items()}
    splits = {split: examples for split, examples in found.items() if examples is not None}
    if 'train' not in splits:
        raise ConfigError(f'{source.task.name}: {directory} has no train split, such as train.tsv or train.jsonl')
    for split in ('train', 'validation'):
        hidden = sum(math.isnan(example.targets[0]) for example in splits.get(split, ()))
        if hidden:
            raise ConfigError(f'{source.task.name}: {hidden:,} examples of the {split} split have no label')
    if 'validation' not in splits:
        splits['train'], splits['validation'] = hold_out(splits['train'], HELD_OUT_PERCENT)
        notes['examples of train held out, because there is no validation set'] = len(splits['validation'])
    return TaskData(source.task, splits, dict(notes))


def write_submission(name: str, split: str, predictions: Sequence, directory: pathlib.Path) -> pathlib.Path | None:
    """Writes the file of predictions that gluebenchmark.com accepts for one split.

    The file has the names of classes for MNLI, QNLI and RTE, a score from 0 to 5 for STS-B, and numbers for all others.

    Args:
      name: a key of `SOURCES`.
      split: a split of the task.
      predictions: the predictions in the order of the examples: names of classes, or values for STS-B.
      directory: where the file is written.

    Returns:
      The path of the file, or None if the benchmark accepts no predictions for this split.
    """
    source = SOURCES[name]
    if split not in source.submission:
        return None
    if source.task.kind == 'regression':
        answers = [f'{min(max(value, 0.0), _MAX_SCORE):.3f}' for value in predictions]
    elif name in ('mnli', 'qnli', 'rte'):
        answers = list(predictions)
    else:
        answers = [str(source.task.labels.index(label)) for label in predictions]
    path = directory / source.submission[split]
    lines = (f'{i}\t{answer}\n' for i, answer in enumerate(answers))
    atomic.write_bytes(path, ''.join(['index\tprediction\n', *lines]).encode())
    return path


def _home(source: _Source, name: str, directory: pathlib.Path) -> pathlib.Path:
    """The directory of the task inside `directory`, or `directory` itself if it holds the files of the task."""
    if not directory.is_dir():
        raise ConfigError(f'{source.task.name}: the directory {directory} does not exist')
    known = {source.directory.lower(), name}
    homes = sorted(path for path in directory.iterdir() if path.is_dir() and path.name.lower() in known)
    if homes:
        return homes[0]
    if any(directory.glob('train.*')) or any(directory.glob('msr_paraphrase_train.*')):
        return directory
    found = ', '.join(sorted(path.name for path in directory.iterdir())[:12])
    raise ConfigError(
        f'{source.task.name}: {directory} has neither {source.directory}/ nor {name}/, and no train split of its own; '
        f'it holds {found or "nothing"}'
    )


def _read_split(
    source: _Source, home: pathlib.Path, names: Sequence[str], split: str, notes: Counter[str]
) -> list[Example] | None:
    """The examples of one split; None if there is no file for it."""
    files = (home / f'{name}{suffix}' for name in names for suffix in records.SUFFIXES)
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return None
    is_test = split.startswith('test')
    columns = source.headless if path.suffix == '.tsv' and not is_test else ()
    examples: list[Example] = []
    # Predictions for a test set are numbered by its lines, so no line may be skipped.
    for line, record in records.read(path, columns, None if is_test else notes, quoted=False):
        where = f'line {line} of {path}'
        label = next((record[key] for key in (source.label, 'label', 'score') if key in record), None)
        if label is None and not is_test:
            raise ConfigError(f'{where} has no {source.label!r}; its fields are {", ".join(record)}')
        texts = tuple(records.text(record, key, where) for key in _text_columns(source, record, where))
        texts = records.whole_characters(texts, notes, split)
        if not any(part.strip() for part in texts):
            notes[f'examples of {split} without text'] += 1
        # The benchmark numbers the rows of its test sets from 0, and submissions use these numbers.
        examples.append(Example(str(len(examples)), texts, (_target(source.task, label, where),)))
    if not examples:
        raise ConfigError(f'{path} has no examples')
    return examples


def _text_columns(source: _Source, record: dict, where: str) -> tuple[str, ...]:
    plain = ('text',) if len(source.texts) == 1 else ('a', 'b')
    for columns in (source.texts, source.tfds_texts, plain):
        if columns and all(column in record for column in columns):
            return columns
    raise ConfigError(
        f'{where} does not belong to {source.task.name}, whose texts are in '
        f'{" and ".join(map(repr, source.texts))}; its fields are {", ".join(record)}'
    )


def _target(task: Task, label: Any, where: str) -> float:
    if label is None:
        return math.nan
    if task.kind != 'regression':
        return class_number(label, task.labels, where)
    score = number(label, where)
    if score == -1:  # TFDS marks a hidden score by −1
        return math.nan
    if not math.isnan(score) and not 0 <= score <= _MAX_SCORE:
        raise ConfigError(f'{where}: the score {score:g} is not between 0 and {_MAX_SCORE:g}')
    return score


def _read_tfds(source: _Source, name: str, names: Sequence[str]) -> list[Example] | None:
    splits = tfds_sets.prepared_builder(f'{SUITE}/{name}')
    split = next((n for n in names if n in splits.info.splits), None)
    return None if split is None else list(_tfds_examples(source, splits.as_data_source(split), split))


def _tfds_examples(source: _Source, rows: Sequence[Mapping[str, Any]], split: str) -> Iterator[Example]:
    if split.startswith('test'):  # submissions have the numbers of the benchmark, and TFDS mixes the examples
        rows = sorted(rows, key=lambda row: int(row['idx']))
        if [int(row['idx']) for row in rows] != list(range(len(rows))):
            raise ConfigError(
                f'{source.task.name}, {split}: the {len(rows)} examples that TFDS holds are not numbered from 0 on: '
                'prepare the data set again, or give the files of the benchmark'
            )
    for i, row in enumerate(rows):
        where = f'example {i} of {source.task.name}, {split}'
        texts = tuple(row[key].decode() for key in source.tfds_texts or source.texts)
        yield Example(str(i), texts, (_target(source.task, row['label'].item(), where),))
