"""Checks that each key of a configuration has a possible value, and that the keys agree with each other."""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import ml_collections

from mlm_jax.config import mixture
from mlm_jax.config.access import get, values
from mlm_jax.config.defaults import Kind, kinds, row_length
from mlm_jax.config.durations import DURATIONS, MAX_STEPS, is_duration, resolve_steps
from mlm_jax.config.optimizer_defaults import WEIGHT_DECAYS, weight_decay
from mlm_jax.files import paths
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.registry import PARTITIONS, RATIO_SCHEDULES, SCHEDULES, STRATEGIES, UNITS, largest_ratio
from mlm_jax.models.windows import local_layers
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

# All keys that name files or directories, also those whose value has a prefix before the path.
PATH_KEYS = (
    'data.directory', 'data.corpus', 'data.validation_corpus', 'tokenizer.model', 'init_from', 'masking.token_weights',
    'evaluation.blimp', 'compilation_cache',
)  # fmt: skip
_DIRECTORY_KEYS = ('data.directory', 'evaluation.blimp')  # the ones among PATH_KEYS that must be directories


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
    'optimizer.eps': _SHARE,
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

DEFAULT_ROTARY_BASE = 10_000.0
ROTARY_MULTIPLE = {'rotary': 2, 'rotary_2d': 4}  # each coordinate rotates pairs of values

# The largest weight decay for an optimizer that does not multiply it by the learning rate, that is, the share of a
# weight that an update removes. With a larger share, weights forget everything within some thousand updates. AdamW's
# 0.01 lies far above, ModernBERT's 1e-5 far below.
LARGEST_SHARE = 1e-3

# A smaller weight decay that is multiplied by the learning rate has no effect in any run.
SMALLEST_DECAY = 1e-4


def check_together(config: ml_collections.ConfigDict) -> None:
    """Checks that the keys agree with each other; this uses no device.

    Args:
      config: a configuration that has passed `check_values` and has no open keys (`resolve.decided`).

    Raises:
      ConfigError: with all problems found, a line each; each says what to do.
    """
    problems = _path_problems(config) + _mixture_problems(config)
    c, m = config, config.model
    if c.batch_size % c.num_microbatches:
        problems.append(f'batch_size={c.batch_size} must be a multiple of num_microbatches={c.num_microbatches}')
    problems += _head_problems(m) + _position_problems(m) + _norm_problems(m)
    problems += _objective_problems(c)
    if m.scan_unroll and m.num_layers % m.scan_unroll:
        problems.append(f'model.scan_unroll={m.scan_unroll} must divide model.num_layers={m.num_layers}')
    problems += _masking_problems(c)
    problems += [
        f'mesh.{axis}=0 must be -1, for all devices that the other axes leave, or at least 1'
        for axis, size in c.mesh.items()
        if not size
    ]
    if c.fsdp_gather == 'step' and c.mesh.tensor != 1:
        problems.append(
            f'fsdp_gather=step needs devices that compute with whole weights, but mesh.tensor={c.mesh.tensor} splits '
            'them: use fsdp_gather=layer'
        )
    if c.sharding != 'dp' and c.mesh.fsdp == 1 and c.mesh.tensor == 1:
        problems.append(
            f'sharding={c.sharding} splits the state over mesh.fsdp and mesh.tensor, but both are 1: set mesh.data=1 '
            'and mesh.fsdp=-1, or sharding=dp'
        )
    if m.attention_backend in ('cudnn', 'splash'):
        problems += _fused_attention_problems(c)
    if c.accelerator == 'cpu' and m.attention_backend != 'xla':
        problems.append(f'model.attention_backend={m.attention_backend} does not run on a CPU: use xla')
    problems += _optimizer_problems(c)
    if c.batch_size * row_length(c) >= 2**31:
        problems.append(
            f'a batch of batch_size={c.batch_size:,} rows of {row_length(c):,} tokens is more than 2³¹ '
            'tokens, and token counts must fit 32 bits: lower batch_size'
        )
    for prefix in DURATIONS:
        try:
            total_steps = None if prefix == 'total' else 100
            steps = resolve_steps(c, prefix, total_steps=total_steps, steps_per_epoch=1.0)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if not steps and prefix == 'total':
            problems.append('the length of the run is missing or 0: set total_steps, or another of the keys total_…')
    if problems:
        raise ConfigError('\n'.join(problems))


def remarks(config: ml_collections.ConfigDict, num_rows: int) -> list[str]:
    """Remarks about settings that are possible but probably a mistake, a line each.

    Args:
      config: a checked configuration.
      num_rows: the number of rows of an epoch.
    """
    lines, o, k = [], config.optimizer, config.masking
    decay = weight_decay(o)
    if o.name != 'stable_adamw' and 0 < decay < SMALLEST_DECAY:
        lines.append(
            f'optimizer.weight_decay={decay} is a value for stable_adamw: {o.name} multiplies it by the learning rate, '
            f'and the product is too small to have an effect. The default of {o.name} is {WEIGHT_DECAYS[o.name]}; 0 '
            'turns weight decay off'
        )
    steps_per_epoch = num_rows / config.batch_size
    epochs = (resolve_steps(config, 'total', steps_per_epoch=steps_per_epoch) or 0) / steps_per_epoch
    follows_visits = STRATEGIES[k.strategy].cycle(min(k.ratio, k.final_ratio), k.fully_explored) > 1
    if follows_visits and k.ratio_schedule not in ('constant', 'diffusion') and epochs < 2:
        lines.append(
            f'masking.strategy={k.strategy} changes its ratio only from epoch to epoch, and this run has {epochs:.2g} '
            'epochs: masking.strategy=uniform changes it at every step'
        )
    return lines


def check_values(config: ml_collections.ConfigDict) -> None:
    """Checks each key by itself: that it exists, and that its value has the right type and is a possible one.

    Raises:
      ConfigError: with all problems found, a line each.
    """
    given = values(config)
    problems = [f'the key {key} is missing' for key in kinds() if key not in given]
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


def _path_problems(config: ml_collections.ConfigDict) -> list[str]:
    """The problems of the paths in a configuration, a line each."""
    found = []
    for key in PATH_KEYS:
        path = get(config, key)
        try:
            _check_of(key)(path)
            if path and key in _DIRECTORY_KEYS and not (key == 'data.directory' and mixture.is_mixture(path)):
                paths.check_kind(path, 'directory')
        except ConfigError as error:
            found.append(f'{key}={path}: {error}')
    return found


def _check_of(key: str) -> Callable[[str], None]:
    """The check of where the path under a key lies."""
    return paths.check_compilation_cache if key == 'compilation_cache' else paths.check_local_or_bucket


def _mixture_problems(c: ml_collections.ConfigDict) -> list[str]:
    """What is wrong with the directories of a mixture, or does not go with one."""
    try:
        sources = mixture.parse(c.data.directory)
        for source in sources if len(sources) > 1 else ():  # a single one is checked with the other paths
            paths.check_kind(source.directory, 'directory')
    except ConfigError as error:
        return [str(error)]
    temperature, k, problems = c.data.mixture_temperature, c.masking, []
    if temperature != 1 and (len(sources) == 1 or sources[0].weight):
        problems.append(
            f'data.mixture_temperature={temperature} decides the shares of a mixture without weights, and '
            f'data.directory={c.data.directory} is none: leave it at 1, or name directories alone, as in a,b'
        )
    if len(sources) == 1:
        return problems
    if STRATEGIES[k.strategy].cycle(_largest_ratio(k), k.fully_explored) > 1 or k.static_masks > 1:
        problems.append(
            'masks that follow the visits of a row need rows that all come equally often, and those of a mixture do '
            'not: use another masking.strategy or masking.fully_explored.schedule, masking.static_masks=0 or 1, or '
            'prepare all text in one data.directory'
        )
    if 'collocations' in UNITS[k.unit].tables:
        problems.append(
            f'masking.unit={k.unit} takes collocations, which prepare has computed for each directory of the mixture '
            'alone, not for their mixture: use masking.unit=ngram, or prepare all text in one data.directory'
        )
    return problems


def _head_problems(m: ml_collections.ConfigDict) -> list[str]:
    problems = []
    if m.width % m.num_heads:
        problems.append(f'model.width={m.width} must be a multiple of model.num_heads={m.num_heads}')
    elif m.positions != 'learned' and m.width // m.num_heads % ROTARY_MULTIPLE[m.positions]:
        problems.append(
            f'model.positions={m.positions} needs a head width that is a multiple of '
            f'{ROTARY_MULTIPLE[m.positions]}, not {m.width // m.num_heads}'
        )
    if m.num_kv_heads and m.num_heads % m.num_kv_heads:
        problems.append(
            f'model.num_kv_heads={m.num_kv_heads} must divide model.num_heads={m.num_heads}, as each head of keys and '
            'values serves equally many heads of queries; 0 means as many'
        )
    return problems


def _position_problems(m: ml_collections.ConfigDict) -> list[str]:
    problems = []
    if m.relative_buckets and (m.relative_buckets % 4 or m.relative_max_distance <= m.relative_buckets // 4 + 1):
        problems.append(
            f'model.relative_buckets={m.relative_buckets} must be a multiple of 4, and relative_max_distance='
            f'{m.relative_max_distance} must exceed a quarter of it by more than 1'
        )
    if m.relative_bucketing != 'mae_lm' and not m.relative_buckets:
        problems.append(
            f'model.relative_bucketing={m.relative_bucketing} says where buckets begin, and model.relative_buckets=0 '
            'has none: set model.relative_buckets=32, or leave model.relative_bucketing'
        )
    if m.positions == 'learned' and (m.rotary_base != DEFAULT_ROTARY_BASE or m.rotary_base_local != m.rotary_base):
        problems.append(
            f'model.rotary_base={m.rotary_base:g} and model.rotary_base_local={m.rotary_base_local:g} belong to rotary '
            'positions: set model.positions=rotary, or leave both'
        )
    elif m.rotary_base_local != m.rotary_base and not m.local_window:
        problems.append(
            f'model.rotary_base_local={m.rotary_base_local:g} is for local layers, and model.local_window=0 has none: '
            'set model.local_window, or leave model.rotary_base_local'
        )
    if m.local_window and not any(local_layers(m.num_layers, m.local_window, m.global_every)):
        problems.append(
            f'model.local_window={m.local_window} has no layer to restrict: the layers whose number is a multiple of '
            f'model.global_every={m.global_every} are global, and these are all {m.num_layers}. Set model.global_every '
            'to 2 or more, with several layers, or model.local_window=0'
        )
    return problems


def _norm_problems(m: ml_collections.ConfigDict) -> list[str]:
    problems = []
    if m.norm_type == 'rms_norm' and m.norm_bias:
        problems.append('model.norm_type=rms_norm has no bias: leave model.norm_bias, or set model.norm_bias=false')
    if not m.first_norm and m.norm != 'pre':
        problems.append(
            f'model.first_norm=false leaves out a norm that model.norm={m.norm} does not have: set model.norm=pre, or '
            'model.first_norm=true'
        )
    elif not m.first_norm and not m.embedding_norm:
        problems.append(
            'model.first_norm=false and model.embedding_norm=false leave the first layer without normalized inputs: '
            'set one of them to true'
        )
    return problems


def _optimizer_problems(c: ml_collections.ConfigDict) -> list[str]:
    o = c.optimizer
    share = weight_decay(o)
    if o.name != 'stable_adamw' or share <= LARGEST_SHARE:
        return []
    return [
        f'optimizer.weight_decay={share} is a value for adamw, which multiplies it by the learning rate. '
        f'stable_adamw does not: each update would remove {share:.2%} of every weight, and {math.ceil(1 / share):,} '
        'updates would remove most of what the model has learned. Leave optimizer.weight_decay unset, for the default '
        f'of {WEIGHT_DECAYS[o.name]}, or set it to at most {LARGEST_SHARE}'
    ]


def _objective_problems(c: ml_collections.ConfigDict) -> list[str]:
    m, k, spec, problems = c.model, c.masking, OBJECTIVES[c.objective], []
    if m.zeroed_token >= 0 and not spec.reads_inputs:
        problems.append(
            f'model.zeroed_token={m.zeroed_token} makes up for the masked tokens that an encoder reads, and that of '
            f'{c.objective} reads them otherwise: use objective=mlm, or set model.zeroed_token=-1'
        )
    readers = ' or '.join(name for name, other in OBJECTIVES.items() if other.reads_inputs)
    if k.predicted_fraction < 1 and not spec.reads_inputs:
        problems.append(
            f'masking.predicted_fraction={k.predicted_fraction} corrupts tokens without predicting them, which has an '
            f'effect only with objective={readers}: set masking.predicted_fraction=1 for objective={c.objective}'
        )
    if k.repeats > 1 and (not spec.reads_inputs or k.unit != 'token'):
        problems.append(
            f'masking.repeats={k.repeats} masks the copies of a token independently, which needs objective={readers} '
            'and masking.unit=token: set both, or set masking.repeats=1'
        )
    if m.positions not in spec.positions:
        problems.append(
            f'objective={c.objective} does not support model.positions={m.positions}: set model.positions='
            f'{" or ".join(reversed(spec.positions))}'
        )
    if m.relative_buckets and not spec.relative_bias:
        problems.append(
            f'objective={c.objective} does not support a relative position bias: set model.relative_buckets=0'
        )
    has_fixed_count = k.ratio_schedule == 'constant' and STRATEGIES[k.strategy].has_fixed_count(UNITS[k.unit])
    return problems + spec.problems(c, c.get(c.objective), has_fixed_count)


def _masking_problems(c: ml_collections.ConfigDict) -> list[str]:
    k, problems = c.masking, []
    strategy = STRATEGIES[k.strategy]
    if k.mask_fraction + k.random_fraction > 1 + 1e-9:
        problems.append('masking.mask_fraction + masking.random_fraction must not exceed 1')
    if k.ratio_schedule == 'diffusion' and not 0 < k.final_ratio <= k.ratio:
        problems.append(
            f'masking.ratio_schedule=diffusion draws ratios between masking.final_ratio={k.final_ratio} and '
            f'masking.ratio={k.ratio}: set masking.ratio=1.0 and a smaller masking.final_ratio above 0, such as 0.001'
        )
    if _largest_ratio(k) > strategy.max_ratio:
        problems.append(
            f'with masking.strategy={k.strategy}, masks of ratio {_largest_ratio(k)} would overlap: set masking.ratio '
            f'and masking.final_ratio to at most {strategy.max_ratio}'
        )
    problems += strategy.problems(k)
    if k.static_masks and strategy.cycle(_largest_ratio(k), k.fully_explored) > 1:
        problems.append('masks that depend on earlier visits of a row cannot be static: set masking.static_masks=0')
    return problems


def _largest_ratio(k: ml_collections.ConfigDict) -> float:
    return largest_ratio(k.ratio_schedule, k.ratio, k.final_ratio)


def _fused_attention_problems(c: ml_collections.ConfigDict) -> list[str]:
    m, backend, problems = c.model, c.model.attention_backend, []
    if m.attention_dropout:
        problems.append(f'the {backend} attention backend has no dropout: set model.attention_dropout=0.0, or use xla')
    if backend == 'cudnn' and m.dtype != 'bfloat16':
        problems.append('the cudnn attention backend computes in bfloat16: set model.dtype=bfloat16, or use xla')
    if backend == 'splash' and m.relative_buckets:
        problems.append('the splash attention backend takes no relative bias: set model.relative_buckets=0, or use xla')
    if backend == 'splash' and m.local_window and not OBJECTIVES[c.objective].reads_inputs:
        problems.append(
            f'the splash attention backend measures windows by places in a row, and with objective={c.objective} '
            'neighbors in a row may lie far apart in the text: set model.attention_backend=xla, or model.local_window=0'
        )
    return problems
