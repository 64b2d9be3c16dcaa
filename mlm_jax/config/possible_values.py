"""Checks that each key of a configuration, by itself, has a possible value."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import ml_collections

from mlm_jax.config.access import unknown, values
from mlm_jax.config.defaults import Kind, kinds
from mlm_jax.config.durations import MAX_STEPS, is_duration
from mlm_jax.config.optimizer_defaults import WEIGHT_DECAYS
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.registry import PARTITIONS, RATIO_SCHEDULES, SCHEDULES, STRATEGIES, UNITS
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.objectives.spec import about, option_fields

# The possible values of keys with a choice. Registries are read when a key is checked. The choices of the options of
# objectives are in their specs; see `bounds_of`.
CHOICES: dict[str, Collection[str]] = {
    'objective': OBJECTIVES,
    'data.packing': ('documents', 'full_sentences', 'one_per_row'),
    'tokenizer.normalization': ('identity', 'nfkc', 'nmt_nfkc'),
    'model.positions': ('learned', 'rotary', 'rotary_2d'),
    'model.relative_bucketing': ('mae_lm', 't5'),
    'model.norm': ('post', 'pre'),
    'model.norm_type': ('layer_norm', 'rms_norm'),
    'model.mlp': ('gelu', 'geglu', 'swiglu'),
    'model.head': ('dense', 'plain'),
    'model.dtype': ('float32', 'bfloat16'),
    'model.attention_backend': ('auto', 'xla', 'cudnn', 'splash'),
    'model.remat': ('none', 'full', 'matmuls'),
    'masking.strategy': STRATEGIES,
    'masking.unit': UNITS,
    'masking.ratio_schedule': RATIO_SCHEDULES,
    'masking.corruption_unit': ('token', 'unit'),
    'masking.fully_explored.partition': PARTITIONS,
    'masking.fully_explored.schedule': SCHEDULES,
    'optimizer.name': WEIGHT_DECAYS,
    'optimizer.decay_mask': ('all', 'matrices'),
    'schedule.name': ('linear', 'cosine', 'wsd', 'constant'),
    'sharding': ('auto', 'dp', 'fsdp', 'fsdp_tp'),
    'fsdp_gather': ('auto', 'step', 'layer'),
    'on_nonfinite': ('stop', 'skip'),
    'accelerator': ('auto', 'any', 'cpu', 'gpu', 'tpu'),
}


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of the numbers that a key may have.

    Attributes:
      low: the smallest number.
      high: the largest number; for whole numbers, often just a bound above any sensible value.
      above: whether `low` itself is excluded.
      below: whether `high` itself is excluded.
      must: text after 'must' in the error message, instead of the bounds.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    must: str = ''

    def problem(self, value: float) -> str:
        """The error message for a number outside the range; '' for a number within."""
        too_small = value <= self.low if self.above else value < self.low
        too_large = value >= self.high if self.below else value > self.high
        if not too_small and not too_large:
            return ''
        if self.must:
            return f'must {self.must}'
        if too_small and self.above:
            return f'must lie above {self.low}'
        if self.below:
            return f'must be at least {self.low} and below {self.high}'
        if too_small and self.high > 100:
            return f'must be at least {self.low}'
        return f'must lie within {self.low:,} … {self.high:,}'


_SHARE, _POSITIVE_SHARE, _BELOW_ONE = Range(0, 1), Range(0, 1, above=True), Range(0, 1, below=True)
_STEPS = Range(1, MAX_STEPS - 1)
_LAYERS, _WIDTH, _HIDDEN = Range(1, 4096), Range(1, 2**17), Range(1, 2**20)
_AXIS = Range(-1, 2**20)
_ROTARY_BASE = Range(1, 1e12, above=True, must='lie above 1 and be at most 1e12')

RANGES = {
    'seed': Range(0, 2**32 - 1),
    'vocab_size': Range(7, 2**24, must='be at least 7, for the 5 special ids and text, and at most 16,777,216'),
    'sequence_length': Range(3, 2**20, must='be at least 3, for [CLS], text and [SEP], and at most 1,048,576'),
    'batch_size': Range(1, 2**24),
    'num_microbatches': Range(1, 2**24),
    'data.mixture_temperature': Range(0, 10**6, above=True),
    'data.block_kib': Range(0, 2**20, must='be 0, for single rows, or the smallest read in KiB, such as 256'),
    'data.window_blocks': Range(1, 2**20),
    'data.validation_percent': Range(0, 100, below=True),
    'data.smiles_copies': Range(0, 10_000, must='be 0, for none, or more, and at most 10,000'),
    'tokenizer.character_coverage': _POSITIVE_SHARE,
    'tokenizer.training_megabytes': Range(1, 10**6),
    'model.num_layers': _LAYERS,
    'model.width': _WIDTH,
    'model.num_heads': _WIDTH,
    'model.num_kv_heads': Range(0, 2**17, must='be 0, for as many as model.num_heads, or the number of shared heads'),
    'model.ffn_width': _HIDDEN,
    'model.rotary_base': _ROTARY_BASE,
    'model.rotary_base_local': _ROTARY_BASE,
    'model.local_window': Range(0, 2**20, must='be 0, for attention to whole documents, or the width of a window'),
    'model.global_every': _LAYERS,
    'model.relative_buckets': Range(0, 2**16),
    'model.zeroed_token': Range(-1, 2**31 - 1, must='be -1, for none, or the id of [MASK]'),
    'model.relative_max_distance': Range(1, 2**20),
    'model.norm_epsilon': Range(0, 1, above=True, below=True, must='lie between 0 and 1'),
    'model.dropout': _BELOW_ONE,
    'model.attention_dropout': _BELOW_ONE,
    'model.scan_unroll': Range(0, 4096),
    'masking.ratio': _POSITIVE_SHARE,
    'masking.final_ratio': _POSITIVE_SHARE,
    'masking.predicted_fraction': Range(0, 1, above=True, must='lie above 0, which predicts nothing, and be at most 1'),
    'masking.mask_fraction': _SHARE,
    'masking.random_fraction': _SHARE,
    'masking.repeats': Range(1, 1024),
    'masking.static_masks': Range(0, 2**30, must='be 0, for new masks at every visit, or more'),
    'masking.fully_explored.segments': Range(2, 1024),
    'masking.fully_explored.views': Range(1, 1024),
    'optimizer.learning_rate': Range(0, 1e37),
    'optimizer.b1': _BELOW_ONE,
    'optimizer.b2': _BELOW_ONE,
    'optimizer.eps': Range(1e-30, 1, must='lie within 1e-30 … 1: smaller ones are 0 in float32'),
    'optimizer.momentum': _BELOW_ONE,
    'optimizer.weight_decay': _SHARE,
    'optimizer.clip_norm': Range(0, 1e37, must='be 0, which clips nothing, or the largest norm of a gradient'),
    'ema.decay': Range(0, 1, below=True, must='be 0, for no moving average, or lie between 0 and 1, such as 0.999'),
    'mesh.data': _AXIS,
    'mesh.fsdp': _AXIS,
    'mesh.tensor': _AXIS,
    'evaluation.rows': Range(1, 2**31 - 1),
    'evaluation.ratio': _POSITIVE_SHARE,
    'evaluation.blimp_percent': Range(0, 100, above=True),
    'checkpoint.keep_last': Range(1, 2**31 - 1),
    'logging.every_steps': _STEPS,
    'profile.start_step': Range(0, MAX_STEPS - 1),
    'profile.num_steps': Range(0, MAX_STEPS - 1),
}  # fmt: skip


def check_values(config: ml_collections.ConfigDict) -> None:
    """Checks each key by itself: that there is such a key, and that its value has the right type and is possible.

    Raises:
      ConfigError: with all problems found, a line each.
    """
    given = values(config)
    problems = [f'the key {key} is missing' for key in kinds() if key not in given]
    problems += [unknown(key, kinds()) for key in given if key not in kinds()]
    problems += [
        f'{key}={given[key]!r} {problem}'
        for key, kind in kinds().items()
        if key in given and (problem := _value_problem(key, kind, given[key]))
    ]
    if problems:
        raise ConfigError('\n'.join(problems))


def bounds_of(key: str) -> tuple[Collection[str], Range | None]:
    """The possible values of a key, empty if any value is possible; and the range of its numbers, if it has one."""
    name, _, option = key.partition('.')
    if name not in OBJECTIVES:
        return CHOICES.get(key, ()), RANGES.get(key)
    known = about(option_fields(OBJECTIVES[name])[option])
    if known.low is None:
        return known.choices, None
    return known.choices, Range(known.low, math.inf if known.high is None else known.high)


def _value_problem(key: str, kind: Kind, value: Any) -> str:
    """The error message for an impossible value, without the key; '' for a possible one."""
    choices, range_ = bounds_of(key)
    if choices:
        return '' if value in choices else f'must be one of {", ".join(choices)}'
    if value is None:
        return '' if kind.optional else f'must be {_KIND_NAMES[kind.type]}'
    if not kind.takes(value):
        return f'must be {_KIND_NAMES[kind.type]}'
    if isinstance(value, float) and not math.isfinite(value):
        return 'must be a finite number'
    if is_duration(key):  # `resolve_steps` checks everything else
        return 'must be 100 at most' if key.endswith('_percent') and value > 100 else ''
    return range_.problem(value) if range_ else ''


_KIND_NAMES = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}
