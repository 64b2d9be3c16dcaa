"""What a downstream task hands to fine-tuning, whatever files it came in."""

import dataclasses
from collections.abc import Mapping, Sequence


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
      kind: 'classification' (one of several classes), 'regression', or 'multilabel' (several yes-or-no targets, some of
        them missing).
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
