"""Downstream tasks and their examples in the form that fine-tuning uses, independent of file formats."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from mlm_jax.files.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a classification or regression task.

    Attributes:
      id: the name of the example in files of predictions; unique within its split.
      texts: one text, or the two texts of a pair.
      targets: the number of the class, or the value to predict; a task with several targets has one value for each. NaN
        means that a target is unknown, because it is missing or because a test set has no labels.
    """

    id: str
    texts: tuple[str, ...]
    targets: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and its metrics.

    Attributes:
      name: the name of the task, such as 'glue/sst2'.
      kind: 'classification' (one of several classes), 'regression', 'multilabel' (several binary targets, some of which
        may be missing), or 'span' (answers are spans of a text; the examples are `squad.Question`).
      labels: the classes of a classification, or the names of the targets.
      metrics: names in `tasks/metrics.py`; the first metric selects the best settings and the best epoch.
      recipe: the settings of fine-tuning that differ from the defaults.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    recipe: Mapping[str, int | float | str] = dataclasses.field(default_factory=dict)


E = TypeVar('E')  # `Example`, or another type of the task's kind


@dataclasses.dataclass(frozen=True)
class TaskData(Generic[E]):
    """A task with its examples.

    Attributes:
      task: the task.
      splits: 'train', 'validation', and any others ('test', 'validation_mismatched', …).
      notes: what was dropped or repaired while reading → how often; empty if nothing was.
    """

    task: Task
    splits: Mapping[str, Sequence[E]]
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def digest(self) -> str:
        """A hash of the task and all its examples, which identifies the data to which results belong."""
        found = hashlib.blake2b(repr(self.task).encode(), digest_size=16)
        for split, examples in self.splits.items():
            for example in examples:
                found.update(repr((split, example)).encode(errors='surrogatepass'))
        return found.hexdigest()


def hold_out(examples: Sequence[Example], percent: float) -> tuple[list[Example], list[Example]]:
    """Divides examples by a hash of their texts, so that all runs agree and equal texts are on the same side.

    Args:
      examples: the examples of the train split.
      percent: the percentage of the examples to hold out.

    Returns:
      The examples that remain, and the examples that are held out.
    """
    threshold = percent / 100 * 2**64
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        digest = hashlib.blake2b('\0'.join(example.texts).encode(errors='surrogatepass'), digest_size=8).digest()
        sides[int.from_bytes(digest) < threshold].append(example)
    return sides


def class_number(value: Any, labels: Sequence[str], where: str) -> float:
    """The number of a class that a file gives by name or by number; NaN for −1, which marks a hidden label.

    Raises:
      ConfigError: if `value` is neither the name nor the number of a class.
    """
    if str(value) in labels:
        return float(labels.index(str(value)))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if number == -1:
        return math.nan
    if number not in range(len(labels)):
        raise ConfigError(
            f'{where}: {value!r} is not a label; the labels are {", ".join(labels)}, or 0 … {len(labels) - 1}'
        )
    return number


def number(value: Any, where: str) -> float:
    """Converts a target to a number; NaN if it is missing.

    Raises:
      ConfigError: if `value` is not a finite number.
    """
    if value is None or value == '':
        return math.nan
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.inf
    if not math.isfinite(result):
        raise ConfigError(f'{where}: {value!r} is not a finite number')
    return result


def yes_or_no(value: Any, where: str) -> float:
    """Converts a binary target to 0 or 1; NaN if it is missing.

    Raises:
      ConfigError: if `value` is something else.
    """
    if value is None or value == '':
        return math.nan
    if str(value) not in ('0', '1', '0.0', '1.0'):
        raise ConfigError(f'{where}: {value!r} must be 0, 1, or empty')
    return float(value)
