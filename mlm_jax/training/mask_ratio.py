"""Whether masks reach the ratio that a configuration asks for, found out before a run begins.

A strategy chooses whole units and skips one that does not fit, so where words are longer than the share of a row that
is asked for, hardly anything is masked. Nothing else shows it: the loss of the few that are left falls as it should.
"""

import dataclasses

import jax
import numpy as np

from mlm_jax.data.packing import segment_ids
from mlm_jax.masking import registry
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.masking import Masking
from mlm_jax.training.step import MASK_STREAM, stream_key

ROWS = 256  # masked to find out
LEAST = 0.9  # of what is asked for
_STANDARD_ERRORS = 3  # that chance may add to what is missing


@dataclasses.dataclass(frozen=True)
class MaskRatio:
    """Shares of the eligible tokens: predicted, and asked for; and the standard error of the first."""

    predicted: float
    asked: float
    standard_error: float

    @property
    def is_missed(self) -> bool:
        """Whether less is predicted than `LEAST` of what is asked for, and not by chance."""
        return self.predicted + _STANDARD_ERRORS * self.standard_error < LEAST * self.asked


def asked_ratio(masking: Masking, step: int) -> float:
    """The share of the eligible tokens that the settings ask to predict, at a step."""
    ratio_B, _ = masking.ratio_schedule(jax.random.key(0), step, ROWS)
    strategy = registry.STRATEGIES[masking.strategy]
    return masking.predicted_fraction * strategy.ratio(float(np.mean(ratio_B)), masking.fully_explored)


def of_batches(masking: Masking, batches: list[MaskedBatch], step: int) -> MaskRatio:
    """The ratio of rows that `masking` has masked at a step or soon after."""
    special = masking.vocabulary.special_ids
    predicted_R = np.concatenate([np.sum(np.asarray(b.positions) < b.tokens.shape[1], axis=1) for b in batches])
    eligible_R = np.concatenate(
        [np.sum((np.asarray(b.segments) > 0) & ~np.isin(b.tokens, special), axis=1) for b in batches]
    )
    total = max(1, eligible_R.sum())
    ratio = predicted_R.sum() / total
    error = np.sqrt(np.sum((predicted_R - ratio * eligible_R) ** 2)) / total
    return MaskRatio(float(ratio), asked_ratio(masking, step), float(error))


def warning(masking: Masking, rows, seed: int, step: int = 0) -> str:
    """What to tell the user before training, in a line or more; '' where masks are as they were asked for.

    Args:
      masking: of the training.
      rows: `data.shards.Shards` of the training; `ROWS` of them, from all over, are masked.
      seed: of the run.
      step: of the run.
    """
    if masking.has_fixed_count or not len(rows):
        return ''
    index = np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(np.int64)
    tokens_RxT = np.asarray(rows.read(index), np.int32)

    @jax.jit
    def mask(tokens_RxT, step):
        return masking(
            stream_key(seed, MASK_STREAM, step), tokens_RxT, segment_ids(tokens_RxT, masking.vocabulary), step
        )

    ratio = of_batches(masking, [jax.device_get(mask(tokens_RxT, np.int32(step)))], step)
    return describe(ratio, masking) if ratio.is_missed else ''


def describe(ratio: MaskRatio, masking: Masking) -> str:
    """A missed ratio in words, with the cure."""
    if masking.unit != 'token':
        reason = (
            f'too many units of masking.unit={masking.unit} are longer than the share of a row that is to be masked, '
            'and skipped'
        )
        cure = 'Set masking.unit=token or ngram, which mask as much as is asked for; longer rows may help too'
    elif masking.strategy == 'weighted':
        reason = 'the weights of masking.token_weights are 0 for too many tokens'
        cure = 'Give more ids a weight'
    else:
        reason, cure = 'too many chosen tokens find no slot', 'Set masking.strategy=uniform, or take longer rows'
    return (
        f'WARNING: masks cover {ratio.predicted:.1%} of the tokens, where {ratio.asked:.1%} are asked for: {reason}. '
        f'{cure}. python -m mlm_jax.inspect_masks shows the masks'
    )
