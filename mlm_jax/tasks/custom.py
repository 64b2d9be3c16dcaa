"""A user-defined task: TSV, CSV or JSON lines files with columns of text and columns of targets."""

import dataclasses
import decimal
import math
import pathlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mlm_jax.files import buckets, json_lines, records
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks import metrics
from mlm_jax.tasks.examples import Example, Task, TaskData, class_number, hold_out, number, yes_or_no

METRICS = {
    'classification': ('accuracy', 'macro_f1'),
    'multilabel': ('roc_auc', 'average_precision'),
    'regression': ('pearson_spearman', 'rmse'),
}
_HIDDEN = ('-1', '-1.0')  # the labels of test sets that the data sets of Hugging Face do not tell
_INTEGER = re.compile(r'[+-]?\d+(\.0*)?')
_NUMBER = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,6})?')


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of the task, and the meaning of their columns.

    Attributes:
      name: the name of the task.
      kind: 'classification', 'multilabel' (targets are 0, 1 or empty) or 'regression'.
      train: the training file.
      validation: the validation file; '' means that a part of `train` is held out.
      test: the test file, with or without targets, or ''.
      texts: one or two columns with text.
      targets: the columns with targets: one column for a classification, else one or more.
      metrics: the names of the metrics; the first one selects the best model. If empty, `METRICS` applies.
      held_out_percent: the percentage of `train` that is held out if there is no `validation`.
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


def read(files: Files) -> TaskData[Example]:
    """Reads the task. White space around column names, names of classes and values is left out, and counted.

    Raises:
      ConfigError: if files, columns or values are missing or not valid.
    """
    if len(files.texts) not in (1, 2):
        raise ConfigError(
            f'{files.name} has {len(files.texts)} text columns; give one column, or two columns for pairs'
        )
    if files.kind == 'classification' and len(files.targets) != 1:
        raise ConfigError(f'a classification has one target column, but {files.name} has {len(files.targets)}')
    if not files.targets:
        raise ConfigError(f'{files.name} has no target column')
    named = {'train': files.train, 'validation': files.validation, 'test': files.test}
    paths = {split: buckets.path(path).expanduser() for split, path in named.items() if path}
    notes: Counter[str] = Counter()
    rows = {split: _rows(path, split, notes) for split, path in paths.items()}
    for split, path in paths.items():
        if not rows[split]:
            raise ConfigError(f'{path} has no examples: it is empty, or has only a line of column names')
    labels = _labels(files, paths['train'], rows['train']) if files.kind == 'classification' else files.targets
    metrics.check(files.metrics, files.kind, len(labels))
    splits = {}
    for split, path in paths.items():
        splits[split] = _examples(files, path, rows[split], labels, split, notes)
    if 'validation' not in splits:
        splits['train'], splits['validation'] = hold_out(splits['train'], files.held_out_percent)
        notes['examples of train held out, because there is no validation set'] = len(splits['validation'])
    task = Task(files.name, files.kind, tuple(labels), files.metrics or METRICS[files.kind])
    return TaskData(task, splits, {note: count for note, count in notes.items() if count})


def describe_positive_class(task: Task) -> str:
    """Which of two classes the metrics of a classification are about; '' where none of them makes a difference."""
    asked = [name for name in task.metrics if name in metrics.OF_POSITIVE_CLASS]
    if task.kind != 'classification' or not asked:
        return ''
    other, positive = task.labels
    return f'{task.name}: the positive class of {" and ".join(asked)} is {positive!r}, the other one {other!r}'


def _rows(path: pathlib.Path, split: str, notes: Counter[str]) -> list[tuple[int, dict]]:
    """The line and the record of each record of a file, without white space around the names of columns."""
    rows, mended = [], set()
    for line, record in records.read(path):
        stripped = {name.strip(): value for name, value in record.items()}
        twice = [name for name, times in Counter(map(str.strip, record)).items() if name and times > 1]
        if twice:
            raise ConfigError(
                f'line {line} of {path} has columns whose names differ in white space only: {twice[0]!r}; rename one'
            )
        mended |= record.keys() - stripped.keys()
        rows.append((line, stripped))
    if mended:
        notes[f'column names of {split} with white space around them, which is left out'] = len(mended)
    return rows


def _labels(files: Files, path: pathlib.Path, rows: Sequence[tuple[int, dict]]) -> Sequence[str]:
    """The classes of the train split; integers come first, in numerical order, then names in alphabetical order."""
    column, found = files.targets[0], set()
    for line, record in rows:
        where = f'line {line} of {path}'
        label = _stripped(records.field(record, column, where))
        if not _is_missing(label):
            found.add(_class_name(label, where))
    if not 2 <= len(found) <= 1000:
        raise ConfigError(
            f'the column {column!r} of {path} has {len(found):,} classes; a classification has 2 … 1000. '
            'To predict numbers, set --kind=regression'
        )
    labels = sorted(found, key=_in_order)
    _refuse_equal_numbers(labels, column, path)
    return labels


def _refuse_equal_numbers(labels: Sequence[str], column: str, path: pathlib.Path) -> None:
    """Raises ConfigError for two classes that are one number, as 1 and 1.0, which files mix that were joined."""
    spellings: dict[decimal.Decimal, str] = {}
    for label in filter(_NUMBER.fullmatch, labels):
        first = spellings.setdefault(decimal.Decimal(label), label)
        if first != label:
            raise ConfigError(
                f'the column {column!r} of {path} has the classes {first!r} and {label!r}, which are the same number: '
                'write it in one way; or, if they are two classes, give them names that are no numbers'
            )


def _in_order(label: str) -> tuple[int, decimal.Decimal, str]:
    """A sort key that puts integers, with any number of digits, before names."""
    is_integer = _INTEGER.fullmatch(label) is not None
    return not is_integer, decimal.Decimal(label if is_integer else 0), label


def _examples(
    files: Files,
    path: pathlib.Path,
    rows: Sequence[tuple[int, dict]],
    labels: Sequence[str],
    split: str,
    notes: Counter[str],
) -> list[Example]:
    examples = []
    for line, record in rows:
        where = f'line {line} of {path}'
        texts = tuple(records.text(record, column, where) for column in files.texts)
        texts = records.whole_characters(texts, notes, split)
        if not any(text.strip() for text in texts):
            notes[f'examples of {split} without text, skipped'] += 1
            continue
        found = [_value(record, column, split, where) for column in files.targets]
        values = [_stripped(value) for value in found]
        notes[f'examples of {split} with white space around a target, which is left out'] += found != values
        if split == 'test' and files.kind == 'classification' and _is_hidden(values[0], labels):
            notes['examples of test with the label −1, which is no class: taken as unknown'] += 1
            values = [None]
        targets = tuple(_target(files.kind, value, labels, where) for value in values)
        if all(map(math.isnan, targets)) and split != 'test':
            notes[f'examples of {split} without a target, skipped'] += 1
            continue
        examples.append(Example(str(line), texts, targets))
    if not examples:
        raise ConfigError(f'{path} has no usable examples')
    return examples


def _value(record: dict, column: str, split: str, where: str) -> Any:
    """The target as it is written in the file; None if a test set does not have the column."""
    if split == 'test' and json_lines.lookup(record, column) is json_lines.MISSING:
        return None
    return records.field(record, column, where)


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _is_missing(value: Any) -> bool:
    """Whether a value is null, empty, or NaN, as pandas writes missing values to JSON lines."""
    return value is None or value == '' or (isinstance(value, float) and math.isnan(value))


def _is_hidden(label: Any, labels: Sequence[str]) -> bool:
    return str(label) in _HIDDEN and str(label) not in labels


def _class_name(label: Any, where: str) -> str:
    if isinstance(label, (list, dict)):
        raise ConfigError(
            f'{where}: the label is a {type(label).__name__}, {str(label)[:60]}, but a classification has one class '
            'for each example. If an example can have several labels, write a column of 0 and 1 for each label, name '
            'all these columns in --target_columns, and set --kind=multilabel'
        )
    return str(label)


def _target(kind: str, value: Any, labels: Sequence[str], where: str) -> float:
    if _is_missing(value):
        return math.nan
    if kind == 'classification':
        name = _class_name(value, where)
        if name not in labels:
            raise ConfigError(f'{where}: the label {name!r} is not in the train split, which has {", ".join(labels)}')
        return class_number(name, labels, where)
    return yes_or_no(value, where) if kind == 'multilabel' else number(value, where)
