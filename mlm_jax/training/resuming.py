"""Whether a run can resume from a checkpoint with a configuration that has changed."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.config import mixture
from mlm_jax.config.durations import NOMINAL_STEPS_PER_EPOCH
from mlm_jax.data.mixtures import Reading
from mlm_jax.data.prepared_data import PreparedData
from mlm_jax.files.errors import ConfigError
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.objectives.spec import Option, about, option_fields
from mlm_jax.training.checkpoints import Position

# Of the keys of the model, those that parameters belong to. Rotary bases and windows may change, as for longer texts.
_STATE_KEYS = (
    'objective', 'vocab_size', 'sequence_length', 'optimizer.name', 'model.num_layers', 'model.width',
    'model.num_heads', 'model.ffn_width', 'model.positions', 'model.relative_buckets', 'model.norm',
    'model.embedding_norm', 'model.bias', 'model.mlp', 'model.norm_epsilon', 'model.num_kv_heads', 'model.norm_type',
    'model.norm_bias', 'model.first_norm', 'model.relative_bucketing', 'model.tied_head', 'model.head',
    'masking.repeats',
)  # fmt: skip
# Keys that the order of the rows depends on, if rows are read in blocks.
_ORDER_KEYS = ('data.block_kib', 'data.window_blocks')


def state_keys() -> tuple[str, ...]:
    """The keys, also of objectives, that the shapes of the state depend on."""
    return (*_STATE_KEYS, *_options())


def reshaping(different: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Of keys that differ (key → its two values), those that give the state other shapes: runs cannot resume then."""
    alike = {key: option.same_shapes for key, option in _options().items()}
    return [
        key
        for key in state_keys()
        if key in different and not all(value in alike.get(key, ()) for value in different[key])
    ]


def _options() -> dict[str, Option]:
    return {
        f'{name}.{key}': about(field)
        for name, spec in OBJECTIVES.items()
        for key, field in option_fields(spec).items()
        if about(field).shapes_state
    }


def check_resume(
    stored: dict,
    config: ml_collections.ConfigDict,
    note: Callable[[str], None],
    steps_per_epoch: float = NOMINAL_STEPS_PER_EPOCH,
) -> None:
    """Reports what has changed in the configuration since the checkpoint.

    Args:
      stored: the configuration in the checkpoint.
      config: the configuration with which the run is to resume.
      note: a function that receives a text with the differences that do not prevent resuming, if there are any.
      steps_per_epoch: rows / batch_size, to compare durations in steps, whatever their units.

    Raises:
      ConfigError: if the shapes of the state, the batch size, or the order of the rows have changed.
    """
    # Keys that did not exist when the checkpoint was written count as having their defaults.
    before = config_lib.from_json(json.dumps(stored))
    # Some durations are counted by these; where one of them differs, the resume is refused in any case.
    if all(before[key] == config[key] for key in ('batch_size', 'sequence_length')):
        before, config = (config_lib.in_steps(c, steps_per_epoch) for c in (before, config))
    different = config_lib.differences(before, config)
    lines = {key: f'  {key}: {old!r} in the checkpoint, {new!r} now' for key, (old, new) in different.items()}
    reshaped = reshaping(different)
    fatal = [lines[key] for key in different if key in reshaped or _moves_state(key, *different[key], config)]
    if fatal:
        raise ConfigError(
            'the run in this workdir cannot resume from its checkpoint with this configuration:\n'
            + '\n'.join(fatal)
            + '\nUse the configuration of the checkpoint, or another workdir'
        )
    in_blocks = config.data.block_kib + before.data.block_kib
    reordered = [key for key in different if key == 'seed' or (key in _ORDER_KEYS and in_blocks)]
    if reordered:
        raise ConfigError(
            '\n'.join(lines[key] for key in reordered) + '\nThe order of the rows depends on it, and a run keeps its '
            'order, so that every row comes once in an epoch: use the value of the checkpoint, or another workdir'
        )
    if 'batch_size' in different:
        raise ConfigError(
            f'{lines["batch_size"]}: the position in the data is counted in batches, so a run keeps its batch_size. '
            'To change how many rows a device processes at once, change num_microbatches or the mesh; or use another '
            'workdir'
        )
    if lines:
        note('the configuration changed since the checkpoint:\n' + '\n'.join(lines.values()))


def check_tokenizer(data: PreparedData, workdir: pathlib.Path) -> None:
    """Raises ConfigError where a run that resumes would read rows of another tokenizer than before."""
    if not data.are_of(workdir / 'tokenizer.model'):
        raise ConfigError(
            f'the run in {workdir} was trained with another tokenizer than that of {data.tokenizer.parent}: the '
            'numbers in these rows mean other pieces than the model has learned. Give the former rows, or rows that '
            f'prepare makes with tokenizer.model={workdir / "tokenizer.model"}; or train in another workdir'
        )


def check_length(first_step: int, total_steps: int) -> None:
    """Raises ConfigError where a run that is to end after `total_steps` has already done more."""
    if first_step > total_steps:
        raise ConfigError(
            f'this run has done {first_step:,} steps, and total_steps={total_steps:,} asks for less: give the length '
            'that it had, or a greater one; or train in another workdir'
        )


def resumed_reading(position: Position, now: Reading, note: Callable[[str], None]) -> Reading:
    """From where a resumed run reads its data: `Reading.resumed` of what its checkpoint says.

    Args:
      position: of the checkpoint.
      now: the reading of a new run with the present data.
      note: receives a line for each source whose share has changed.
    """
    if position.data:
        before = Reading.from_json(position.data)
    else:  # of an earlier version
        name = mixture.parse(position.config['data']['directory'])[0].name
        before = Reading(0, (dataclasses.replace(now.readers[0], name=name, fingerprint='', share=1, number=0),))
    return before.resumed(now, position.examples, note)


def _moves_state(key: str, old: Any, new: Any, config: ml_collections.ConfigDict) -> bool:
    """Whether a changed key changes the parts of the state: clipping, the moving average, or masks of the decay."""
    if key in ('optimizer.clip_norm', 'ema.decay'):
        return bool(old) != bool(new)
    return key == 'optimizer.decay_mask' and config.optimizer.name != 'stable_adamw'
