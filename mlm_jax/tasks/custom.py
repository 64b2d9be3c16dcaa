"""A task of one's own: TSV, CSV or JSON lines with columns of text and of what is to be predicted."""

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Sequence

from mlm_jax.files import json_lines, records
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks import metrics
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
    named = {'train': files.train, 'validation': files.validation, 'test': files.test}
    paths = {split: pathlib.Path(path).expanduser() for split, path in named.items() if path}
    rows = {split: list(records.read(path)) for split, path in paths.items()}
    for split, path in paths.items():
        if not rows[split]:
            raise ConfigError(f'{path} holds no example: it is empty, or has names of columns and nothing below')
    labels = _labels(files, paths['train'], rows['train']) if files.kind == 'classification' else files.targets
    metrics.check(files.metrics, files.kind, len(labels))
    notes, splits = Counter(), {}
    for split, path in paths.items():
        splits[split] = _examples(files, path, rows[split], labels, split, notes)
    if 'validation' not in splits:
        splits['train'], splits['validation'] = hold_out(splits['train'], files.held_out_percent)
        notes['examples of train held out, since there is no validation set'] = len(splits['validation'])
    task = Task(files.name, files.kind, tuple(labels), files.metrics or METRICS[files.kind])
    return TaskData(task, splits, dict(notes))


def _labels(files: Files, path: pathlib.Path, rows: Sequence[tuple[int, dict]]) -> Sequence[str]:
    """The classes of the train split: numbers in their order, else names in that of the alphabet."""
    column, found = files.targets[0], set()
    for line, record in rows:
        where = f'line {line} of {path}'
        label = records.field(record, column, where)
        if not _is_missing(label):
            found.add(_class_name(label, where))
    if not 2 <= len(found) <= 1000:
        raise ConfigError(
            f'the column {column!r} of {path} has {len(found):,} classes; a classification has 2 … 1000. '
            'Numbers to be predicted are --kind=regression'
        )
    return sorted(found, key=_in_order)


def _in_order(label: str) -> tuple[int, int, str, str]:
    """Sorts whole numbers, of however many digits, before names."""
    digits = label.lstrip('0')
    return (0, len(digits), digits, label) if label.isdecimal() else (1, 0, label, '')


def _examples(
    files: Files,
    path: pathlib.Path,
    rows: Sequence[tuple[int, dict]],
    labels: Sequence[str],
    split: str,
    notes: Counter,
) -> list[Example]:
    examples = []
    for line, record in rows:
        where = f'line {line} of {path}'
        texts = tuple(records.text(record, column, where) for column in files.texts)
        texts = records.whole_characters(texts, notes, split)
        if not any(text.strip() for text in texts):
            notes[f'examples of {split} without text, left out'] += 1
            continue
        targets = tuple(_target(files.kind, _value(record, c, split, where), labels, where) for c in files.targets)
        if all(map(math.isnan, targets)) and split != 'test':
            notes[f'examples of {split} without a target, left out'] += 1
            continue
        examples.append(Example(str(line), texts, targets))
    if not examples:
        raise ConfigError(f'{path} holds no example')
    return examples


def _value(record: dict, column: str, split: str, where: str):
    """What is to be predicted; a test set need not have it."""
    if split == 'test' and json_lines.lookup(record, column) is json_lines.MISSING:
        return None
    return records.field(record, column, where)


def _is_missing(value) -> bool:
    return value is None or (isinstance(value, str) and value == '')


def _class_name(label, where: str) -> str:
    if isinstance(label, (list, dict)):
        raise ConfigError(
            f'{where}: the label is a {type(label).__name__}, {str(label)[:60]}, and a classification has one class '
            'for each example. Where several may hold, give each a column of 0 and 1, name them all in '
            '--target_columns, and set --kind=multilabel'
        )
    return str(label)


def _target(kind: str, value, labels: Sequence[str], where: str) -> float:
    if _is_missing(value):
        return math.nan
    if kind == 'classification':
        name = _class_name(value, where)
        if name not in labels:
            raise ConfigError(f'{where}: the label {name!r} is not in the train split, which has {", ".join(labels)}')
        return class_number(name, labels, where)
    return yes_or_no(value, where) if kind == 'multilabel' else number(value, where)
