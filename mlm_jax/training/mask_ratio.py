"""Checks, before a run begins, whether masks reach the ratio that the configuration asks for.

A strategy chooses whole units and skips units that do not fit. If most words are longer than the share of a row that is
to be masked, hardly anything is masked. Nothing else shows this: the loss of the few masked tokens falls as usual.
"""

import dataclasses

import jax
import numpy as np

from mlm_jax.data.rows import RowSource
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.masking import Masking
from mlm_jax.training.step import draw_masks

ROWS = 256  # how many rows are masked for the check
LEAST = 0.9  # the smallest share of the requested ratio for which there is no warning
_STANDARD_ERRORS = 3  # a shortfall that is smaller than this many standard errors may be chance


@dataclasses.dataclass(frozen=True)
class MaskRatio:
    """The share of the eligible tokens that are predicted, the share that should be, and the error of the former."""

    predicted: float
    asked: float
    standard_error: float

    @property
    def is_missed(self) -> bool:
        """Whether less than `LEAST` of the requested share is predicted, by more than chance explains."""
        return self.predicted + _STANDARD_ERRORS * self.standard_error < LEAST * self.asked


def of_batches(masking: Masking, batches: list[MaskedBatch], step: int) -> MaskRatio:
    """The ratio in batches that `masking` has masked at `step` or soon after."""
    special = masking.vocabulary.special_ids
    predicted_R = np.concatenate([np.sum(np.asarray(b.positions) < b.tokens.shape[1], axis=1) for b in batches])
    eligible_R = np.concatenate(
        [np.sum((np.asarray(b.segments) > 0) & ~np.isin(b.tokens, special), axis=1) for b in batches]
    )
    total = max(1, eligible_R.sum())
    ratio = predicted_R.sum() / total
    error = np.sqrt(np.sum((predicted_R - ratio * eligible_R) ** 2)) / total
    asked = masking.predicted_fraction * masking.asked_ratio(step, len(batches[0].tokens) // masking.num_views)
    return MaskRatio(float(ratio), asked, float(error))


def warning(masking: Masking, rows: RowSource, seed: int, step: int = 0) -> str:
    """A warning for the user before training; '' if the masks reach the requested ratio.

    Args:
      masking: the masking of training batches.
      rows: the training rows, of which `ROWS`, spread evenly, are masked.
      seed: the seed of the run.
      step: the step of the run.
    """
    if masking.has_fixed_count or not len(rows):
        return ''
    index = np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(np.int64)
    tokens_RxT = np.asarray(rows.read(index), np.int32)

    @jax.jit
    def mask(tokens_RxT, step):
        return draw_masks(masking, seed, step, tokens_RxT)[0]

    ratio = of_batches(masking, [jax.device_get(mask(tokens_RxT, np.int32(step)))], step)
    return describe(ratio, masking) if ratio.is_missed else ''


def describe(ratio: MaskRatio, masking: Masking) -> str:
    """The warning for a missed ratio, which says what to do."""
    if masking.unit != 'token':
        reason = (
            f'too many units of masking.unit={masking.unit} are longer than the share of a row that is to be masked, '
            'and are skipped'
        )
        cure = 'Set masking.unit=token or ngram, which reach the requested ratio; longer rows may help, too'
    elif masking.strategy == 'weighted':
        reason = 'the weights of masking.token_weights are 0 for too many tokens'
        cure = 'Give more ids a positive weight'
    else:
        reason, cure = (
            'there are too few slots for the chosen tokens',
            'Set masking.strategy=uniform, or use longer rows',
        )
    return (
        f'WARNING: masks cover {ratio.predicted:.1%} of the tokens instead of the requested {ratio.asked:.1%}: '
        f'{reason}. {cure}. python -m mlm_jax.inspect_masks shows the masks'
    )
