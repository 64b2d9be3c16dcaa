"""Checks that the keys of the encoder agree with each other, and with its attention kernel."""

import ml_collections

from mlm_jax.models.windows import local_layers
from mlm_jax.objectives.registry import OBJECTIVES

DEFAULT_ROTARY_BASE = 10_000.0
# The largest rate that is rounded to no dropout: models/dropout.py rounds to multiples of 1/256, and ½ to the even 0.
ROUNDED_TO_ZERO = 1 / 512
ROTARY_MULTIPLE = {'rotary': 2, 'rotary_2d': 4}  # each coordinate rotates pairs of values


def problems_of_model(c: ml_collections.ConfigDict) -> list[str]:
    """What is wrong with `model`, a line each; each says what to do.

    Args:
      c: a configuration that has passed `possible_values.check_values` and has no open keys.
    """
    m = c.model
    problems = _head_problems(m) + _position_problems(m) + _norm_problems(m)
    problems += [
        problem for key in ('dropout', 'attention_dropout') if (problem := problem_of_dropout(f'model.{key}', m[key]))
    ]
    if m.scan_unroll and m.num_layers % m.scan_unroll:
        problems.append(f'model.scan_unroll={m.scan_unroll} must divide model.num_layers={m.num_layers}')
    if m.remat != 'none' and m.scan_unroll >= m.num_layers > 1:
        problems.append(
            f'model.remat={m.remat} saves memory only where layers are a loop, and model.scan_unroll={m.scan_unroll} '
            'unrolls all of them: set model.scan_unroll=0, or model.remat=none'
        )
    if m.attention_backend in ('cudnn', 'splash'):
        problems += _fused_attention_problems(c)
    if c.accelerator == 'cpu' and m.attention_backend != 'xla':
        problems.append(f'model.attention_backend={m.attention_backend} does not run on a CPU: use xla')
    return problems


def problem_of_dropout(key: str, rate: float) -> str:
    """What is wrong with the rate of dropout under `key`; '' if nothing is."""
    if not 0 < rate <= ROUNDED_TO_ZERO:
        return ''
    return (
        f'{key}={rate} would be no dropout at all, as rates are rounded to multiples of 1/256: set {key}=0, or at '
        'least 0.002'
    )


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
