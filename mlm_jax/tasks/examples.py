"""What a downstream task hands to fine-tuning, whatever files it came in."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

from mlm_jax.files.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a classification or regression task.

    Attributes:
      id: as files of predictions name it; unique within its split.
      texts: one text, or the two of a pair.
      targets: the number of the class; or the value; or of a task with several targets one value for each. NaN where it
        is unknown: a target that is missing, or a test set without labels.
    """

    id: str
    texts: tuple[str, ...]
    targets: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be learned, and how it is judged.

    Attributes:
      name: such as 'glue/sst2'.
      kind: 'classification' (one of several classes), 'regression', 'multilabel' (several yes-or-no targets, some of
        them missing), or 'span' (answers in a text; its examples are `squad.Question`).
      labels: the classes of a classification; else the names of the targets.
      metrics: names in `tasks/metrics.py`; the first chooses among settings and epochs.
      recipe: how its fine-tuning differs from the defaults.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    recipe: Mapping[str, int | float | str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task with its examples.

    Attributes:
      task: what they are for.
      splits: 'train' and 'validation', and what else there is ('test', 'validation_mismatched', …).
      notes: what was dropped or mended in reading, in words → how often; empty where nothing was.
    """

    task: Task
    splits: Mapping[str, Sequence[Example]]
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def digest(self) -> str:
        """A hash of the task and all its examples: results of other ones are not results of these."""
        found = hashlib.blake2b(repr(self.task).encode(), digest_size=16)
        for split, examples in self.splits.items():
            for example in examples:
                found.update(repr((split, example)).encode(errors='surrogatepass'))
        return found.hexdigest()


def hold_out(examples: Sequence[Example], percent: float) -> tuple[list[Example], list[Example]]:
    """Divides examples by a hash of their texts: the same ones in every run, and equal texts on one side.

    Args:
      examples: of the train split.
      percent: the share to hold out.

    Returns:
      Those that stay, and those held out.
    """
    threshold = percent / 100 * 2**64
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        digest = hashlib.blake2b('\0'.join(example.texts).encode(errors='surrogatepass'), digest_size=8).digest()
        sides[int.from_bytes(digest) < threshold].append(example)
    return sides


def class_number(value, labels: Sequence[str], where: str) -> float:
    """The number of a class that a file gives by name, or by number; NaN for −1, the mark of a hidden label.

    Raises:
      ConfigError: when it is neither.
    """
    if str(value) in labels:
        return float(labels.index(str(value)))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number == -1:
        return math.nan
    if number is None or number not in range(len(labels)):
        raise ConfigError(f'{where}: {value!r} is no label; they are {", ".join(labels)}, or 0 … {len(labels) - 1}')
    return number


def number(value, where: str) -> float:
    """A value to be predicted; NaN where it is missing.

    Raises:
      ConfigError: for what is no finite number.
    """
    if value is None or value == '':
        return math.nan
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.inf
    if not math.isfinite(result):
        raise ConfigError(f'{where}: {value!r} is no number')
    return result


def yes_or_no(value, where: str) -> float:
    """0 or 1; NaN where it is missing.

    Raises:
      ConfigError: for anything else.
    """
    if value is None or value == '':
        return math.nan
    if str(value) not in ('0', '1', '0.0', '1.0'):
        raise ConfigError(f'{where}: {value!r} must be 0, 1, or empty')
    return float(value)
