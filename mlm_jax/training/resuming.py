"""Whether a run can go on from a checkpoint with another configuration."""

import json
from collections.abc import Callable

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.config.resolve import NOMINAL_STEPS_PER_EPOCH
from mlm_jax.files.errors import ConfigError
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.objectives.spec import about, option_fields

_STATE_KEYS = (
    'objective', 'vocab_size', 'sequence_length', 'optimizer.name', 'model.num_layers', 'model.width',
    'model.num_heads', 'model.ffn_width', 'model.positions', 'model.relative_buckets', 'model.norm',
    'model.embedding_norm', 'model.bias', 'model.mlp', 'model.norm_epsilon', 'masking.repeats',
)  # fmt: skip


def state_keys() -> tuple[str, ...]:
    """Keys that shape the state, those of the objectives included: a checkpoint cannot go on with another value."""
    options = (
        f'{name}.{key}'
        for name, spec in OBJECTIVES.items()
        for key, field in option_fields(spec).items()
        if about(field).shapes_state
    )
    return (*_STATE_KEYS, *options)


def check_resume(
    stored: dict,
    config: ml_collections.ConfigDict,
    note: Callable[[str], None],
    steps_per_epoch: float = NOMINAL_STEPS_PER_EPOCH,
) -> None:
    """Names what changed since the checkpoint.

    Args:
      stored: the configuration in the checkpoint.
      config: the one to go on with.
      note: receives a line for each difference that a run can go on with.
      steps_per_epoch: rows / batch_size, to compare durations in steps, whatever their units.

    Raises:
      ConfigError: when a key that shapes the state differs.
    """
    # Keys that came after the checkpoint had their defaults then.
    before = config_lib.from_json(json.dumps(stored))
    shape = ('batch_size', 'sequence_length')
    if all(before[key] == config[key] for key in shape):  # by which some durations are counted; else it is refused
        before, config = (config_lib.in_steps(c, steps_per_epoch) for c in (before, config))
    different = config_lib.differences(before, config)
    lines = {key: f'  {key}: {old!r} in the checkpoint, {new!r} now' for key, (old, new) in different.items()}
    fatal = [lines[key] for key in different if key in state_keys() or _moves_state(key, *different[key], config)]
    if fatal:
        raise ConfigError(
            'the checkpoint in this workdir cannot go on with this configuration:\n' + '\n'.join(fatal) + '\n'
            'Use the configuration of the checkpoint, or another workdir'
        )
    if 'batch_size' in different:
        raise ConfigError(
            f'{lines["batch_size"]}: batches are counted in steps, so a run keeps its batch_size. To change what a '
            'device holds at once, change num_microbatches or the mesh; or use another workdir'
        )
    if lines:
        note('the configuration changed since the checkpoint:\n' + '\n'.join(lines.values()))


def _moves_state(key: str, old, new, config: ml_collections.ConfigDict) -> bool:
    """Whether the optimizer's state has other parts: where clipping comes or goes, or the decay has another mask."""
    if key == 'optimizer.clip_norm':
        return bool(old) != bool(new)
    return key == 'optimizer.decay_mask' and config.optimizer.name != 'stable_adamw'
