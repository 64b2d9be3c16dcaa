"""Durations in a configuration, given by one of the keys `<prefix>_steps`, `<prefix>_epochs`, …, and used as steps."""

import math

import ml_collections
from ml_collections import config_dict

from mlm_jax.config.access import get
from mlm_jax.files.errors import ConfigError

DURATIONS = (
    'total', 'schedule.warmup', 'schedule.decay', 'masking.anneal', 'evaluation.every', 'checkpoint.every',
    'checkpoint.keep',
)  # fmt: skip
DURATION_UNITS = ('steps', 'epochs', 'examples', 'tokens', 'percent')
# For configurations without prepared data, as in benchmarks; only durations in epochs depend on it.
NOMINAL_STEPS_PER_EPOCH = 1000.0
MAX_STEPS = 2**31  # the device counts steps in int32


def duration_keys(node: ml_collections.ConfigDict, prefix: str, **default: float) -> None:
    """Adds the keys `<prefix>_steps`, `<prefix>_epochs`, …; all are None, except the one in `default`.

    Args:
      node: the part of the configuration that receives the keys.
      prefix: the name of the duration: 'total', 'warmup', 'every', ….
      **default: at most one of `steps`, `epochs`, `examples`, `tokens` and `percent`, with the default value.
    """
    for unit in DURATION_UNITS:
        node[f'{prefix}_{unit}'] = config_dict.placeholder(float if unit in ('epochs', 'percent') else int)
    for unit, value in default.items():
        node[f'{prefix}_{unit}'] = value


def resolve_steps(
    config: ml_collections.ConfigDict,
    prefix: str,
    *,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
) -> int | None:
    """Converts a duration of the configuration to optimizer steps.

    Args:
      config: the whole configuration.
      prefix: the dotted prefix of the duration, e.g. 'total' or 'schedule.warmup'.
      total_steps: the length of the run, which durations in percent need.
      steps_per_epoch: the length of an epoch, which durations in epochs need.

    Returns:
      The number of steps, at least 1 for a positive duration, and below `MAX_STEPS`; None if the duration is not set.

    Raises:
      ConfigError: if more than one unit is set, if the value is negative, not finite or too large, or if the length
        that the unit needs is not given.
    """
    values = {u: get(config, f'{prefix}_{u}') for u in DURATION_UNITS}
    given = {u: v for u, v in values.items() if v is not None}
    if not given:
        return None
    if len(given) > 1:
        names = ' and '.join(f'{prefix}_{u}={v}' for u, v in given.items())
        raise ConfigError(
            f'{names} are both set. Give the duration on the command line, which unsets the other: '
            f'--set={prefix}_{list(given)[-1]}={list(given.values())[-1]}'
        )
    ((unit, value),) = given.items()
    if not 0 <= value < math.inf:
        raise ConfigError(f'{prefix}_{unit}={value} is {"negative" if value < 0 else "not a finite number"}')
    per_unit = {
        'steps': 1,
        'examples': 1 / config.batch_size,
        'tokens': 1 / (config.batch_size * config.sequence_length),
        'epochs': steps_per_epoch,
        'percent': None if total_steps is None else total_steps / 100,
    }[unit]
    if per_unit is None:
        raise ConfigError(f'{prefix}_{unit} cannot be used here: give {prefix}_steps instead')
    steps = value * per_unit if value < 1e300 else math.inf  # larger integers cannot be converted to float
    if steps >= MAX_STEPS:
        raise ConfigError(
            f'{prefix}_{unit}={value} is more than {MAX_STEPS:,} steps, and step numbers must fit 32 bits'
        )
    return max(1, round(steps)) if value else 0


def is_duration(key: str) -> bool:
    """Whether a dotted key is one of the keys of a duration, at most one of which may be set."""
    prefix, _, unit = key.rpartition('_')
    return prefix in DURATIONS and unit in DURATION_UNITS
