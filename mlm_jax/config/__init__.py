"""The configuration of a run: an `ml_collections.ConfigDict`.

`keys` holds every key with its default, `overrides` reads configuration files and command lines, `resolve` checks a
configuration and turns it into the one that runs, and `stored` reads and writes the configurations that runs record.
Configuration files and programs use the names below.
"""

from mlm_jax.config.access import get, values
from mlm_jax.config.defaults import (
    SIZES,
    SMALL,
    Kind,
    apply_muon,
    apply_rate_of_size,
    apply_recipe,
    default_config,
    default_recipe,
    kinds,
    row_length,
)
from mlm_jax.config.durations import (
    DURATION_UNITS,
    DURATIONS,
    MAX_STEPS,
    NOMINAL_STEPS_PER_EPOCH,
    duration_keys,
    is_duration,
    resolve_steps,
)
from mlm_jax.config.optimizer_defaults import WEIGHT_DECAYS, weight_decay
from mlm_jax.config.overrides import apply_overrides, load, parse_argument, parse_settings, shipped, with_path
from mlm_jax.config.resolve import check, completed, decided, in_steps, resolve
from mlm_jax.config.stored import differences, from_json, to_json
from mlm_jax.files.errors import ConfigError

__all__ = [
    'DURATIONS', 'DURATION_UNITS', 'MAX_STEPS', 'NOMINAL_STEPS_PER_EPOCH', 'SIZES', 'SMALL', 'WEIGHT_DECAYS',
    'ConfigError', 'Kind', 'apply_muon', 'apply_overrides', 'apply_rate_of_size', 'apply_recipe', 'check', 'completed',
    'decided', 'default_config', 'default_recipe', 'differences', 'duration_keys', 'from_json', 'get', 'in_steps',
    'is_duration', 'kinds', 'load', 'parse_argument', 'parse_settings', 'resolve', 'resolve_steps', 'row_length',
    'shipped', 'to_json', 'values', 'weight_decay', 'with_path',
]  # fmt: skip
