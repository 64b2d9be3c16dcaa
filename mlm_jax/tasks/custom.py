"""A task of one's own: TSV, CSV or JSON lines with columns of text and of what is to be predicted."""

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Sequence

from mlm_jax.config import ConfigError
from mlm_jax.tasks import metrics, records
from mlm_jax.tasks.examples import Example, Task, TaskData, class_number, hold_out, number, yes_or_no

METRICS = {
    'classification': ('accuracy', 'macro_f1'),
    'multilabel': ('roc_auc', 'average_precision'),
    'regression': ('pearson_spearman', 'rmse'),
}


@dataclasses.dataclass(frozen=True)
class Files:
    """Where the task lies, and what its columns mean.

    Attributes:
      name: of the task.
      kind: 'classification', 'multilabel' (targets 0, 1 or empty) or 'regression'.
      train: a file.
      validation: a file; '' holds out a part of `train`.
      test: a file, with or without targets, or ''.
      texts: one or two columns.
      targets: one column of a classification, else one or several.
      metrics: names; the first chooses. Empty takes `METRICS`.
      held_out_percent: of `train`, without `validation`.
    """

    name: str
    kind: str
    train: str
    validation: str
    test: str
    texts: tuple[str, ...]
    targets: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    held_out_percent: float = 10.0


def read(files: Files) -> TaskData:
    """Reads the task.

    Raises:
      ConfigError: for files, columns or values that do not fit.
    """
    if len(files.texts) not in (1, 2):
        raise ConfigError(f'{files.name} has {len(files.texts)} text columns; give one, or the two of a pair')
    if files.kind == 'classification' and len(files.targets) != 1:
        raise ConfigError(f'a classification has one target column, and {files.name} has {len(files.targets)}')
    if not files.targets:
        raise ConfigError(f'{files.name} has no target column')
    labels = _labels(files) if files.kind == 'classification' else files.targets
    metrics.check(files.metrics, files.kind, len(labels))
    notes, splits = Counter(), {}
    for split, path in (('train', files.train), ('validation', files.validation), ('test', files.test)):
        if path:
            splits[split] = _read(files, pathlib.Path(path).expanduser(), labels, split, notes)
    if 'validation' not in splits:
        splits['train'], splits['validation'] = hold_out(splits['train'], files.held_out_percent)
        notes['examples of train held out, since there is no validation set'] = len(splits['validation'])
    task = Task(files.name, files.kind, tuple(labels), files.metrics or METRICS[files.kind])
    return TaskData(task, splits, dict(notes))


def _labels(files: Files) -> Sequence[str]:
    """The classes of the train split: numbers in their order, else names in that of the alphabet."""
    path = pathlib.Path(files.train).expanduser()
    found = {str(records.field(r, files.targets[0], f'line {n} of {path}')) for n, r in records.read(path)}
    found -= {'', 'None'}
    if not 2 <= len(found) <= 1000:
        raise ConfigError(
            f'the column {files.targets[0]!r} of {path} has {len(found):,} classes; a classification has 2 … 1000. '
            'Numbers to be predicted are --kind=regression'
        )
    return sorted(found, key=lambda label: (0, int(label), '') if label.isdecimal() else (1, 0, label))


def _read(files: Files, path: pathlib.Path, labels: Sequence[str], split: str, notes: Counter) -> list[Example]:
    examples = []
    for line, record in records.read(path):
        where = f'line {line} of {path}'
        texts = tuple(records.text(record, column, where) for column in files.texts)
        if not any(text.strip() for text in texts):
            notes[f'examples of {split} without text, left out'] += 1
            continue
        values = [record.get(c) if split == 'test' else records.field(record, c, where) for c in files.targets]
        targets = tuple(_target(files.kind, value, labels, where) for value in values)
        if all(map(math.isnan, targets)) and split != 'test':
            notes[f'examples of {split} without a target, left out'] += 1
            continue
        examples.append(Example(str(line), texts, targets))
    if not examples:
        raise ConfigError(f'{path} holds no example')
    return examples


def _target(kind: str, value, labels: Sequence[str], where: str) -> float:
    if value is None or value == '':
        return math.nan
    if kind == 'classification':
        if str(value) not in labels:
            raise ConfigError(f'{where}: the label {value!r} is not in the train split, which has {", ".join(labels)}')
        return class_number(value, labels, where)
    return yes_or_no(value, where) if kind == 'multilabel' else number(value, where)
