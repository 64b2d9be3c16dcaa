"""What a fine-tuning run keeps besides its arrays: losses, curves, and the best evaluation of each seed."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlm_jax.tasks.metrics import is_better


@dataclasses.dataclass
class Judge:
    """Remembers the best value of each seed, and for how many evaluations each seed has not improved.

    Attributes:
      metric: the metric that is compared.
      patience: evaluations without improvement after which a seed is done; 0 means that it never is.
      best: for each seed the best value so far.
      waited: for each seed the number of evaluations since that value.
      best_step: for each seed the number of updates before that value; 0 before the first evaluation.
    """

    metric: str
    patience: int
    best: list[float]
    waited: list[int]
    best_step: list[int]

    def better(self, values: Sequence[float], step: int) -> list[bool]:
        """Whether each seed improves on its best value so far, which is then replaced. A seed that is done never does.

        Args:
          values: the value of the metric for each seed.
          step: updates before this evaluation.
        """
        result: list[bool] = []
        for i, value in enumerate(values):
            is_first = self.best_step[i] == 0
            result.append(not self._done(i) and (is_first or is_better(self.metric, value, self.best[i])))
            self.waited[i] = 0 if result[-1] else self.waited[i] + 1
            if result[-1]:
                self.best[i], self.best_step[i] = value, step
        return result

    def _done(self, i: int) -> bool:
        return 0 < self.patience <= self.waited[i]

    @property
    def all_done(self) -> bool:
        """Whether every seed has had `patience` evaluations without improvement."""
        return all(map(self._done, range(len(self.best))))


@dataclasses.dataclass
class Record:
    """What a run that is not finished keeps besides its arrays.

    Attributes:
      judge: of all seeds.
      curves: for each seed the points of its evaluations, as in `Outcome.curve`.
      losses: for each update the train losses of the seeds, float32[S], on the device or not.
      seconds: how long the run took until the record was last saved.
    """

    judge: Judge
    curves: list[list[dict[str, float]]]
    losses: list
    seconds: float = 0.0

    @classmethod
    def of(cls, metric: str, patience: int, num_seeds: int) -> 'Record':
        """The record of a run before its first update."""
        judge = Judge(metric, patience, [math.nan] * num_seeds, [0] * num_seeds, [0] * num_seeds)
        return cls(judge, [[] for _ in range(num_seeds)], [])

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> 'Record':
        """The inverse of `as_json`."""
        losses = [np.array(loss_S, np.float32) for loss_S in record['losses']]
        return cls(Judge(**record['judge']), record['curves'], losses, record['seconds'])

    def as_json(self) -> dict[str, Any]:
        """The record in dictionaries, lists and numbers."""
        losses = np.array(self.losses).tolist()
        return {**vars(self), 'judge': vars(self.judge), 'losses': losses}

    @property
    def step(self) -> int:
        """The number of updates so far."""
        return len(self.losses)
