"""From the configuration that a user gives to the configuration that runs.

The result of `resolve` has passed all checks that need no device, every open key (None or 'auto') has a value, and all
durations are in steps. This is the configuration that runs, and that `config.json` in a workdir holds.
"""

import copy
from typing import Protocol

import ml_collections

from mlm_jax.config import checks, possible_values, slice_fitting
from mlm_jax.config.access import parent_of
from mlm_jax.config.durations import DURATION_UNITS, DURATIONS, NOMINAL_STEPS_PER_EPOCH, resolve_steps
from mlm_jax.config.optimizer_defaults import WEIGHT_DECAYS, weight_decay
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.vocabulary import Vocabulary

# The open keys that `config/slice_fitting.py` chooses for a slice, with their values if there is no slice.
_WITHOUT_SLICE = {
    'accelerator': 'any', 'num_microbatches': 1, 'model.attention_backend': 'xla', 'model.attention_dropout': 0.1,
    'mesh.data': -1, 'mesh.fsdp': 1,
}  # fmt: skip


class Split(Protocol):
    """What a configuration must know about a split of prepared data."""

    @property
    def rows(self) -> int:
        """The number of rows."""


class Manifest(Protocol):
    """What a configuration must know about prepared data: a part of `data.manifest.Manifest`."""

    @property
    def sequence_length(self) -> int:
        """The number of tokens of a row."""

    @property
    def packing(self) -> str:
        """How documents were packed into rows: a value of `data.packing`."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The special ids and the number of ids."""

    @property
    def prepare_command(self) -> str:
        """How to call `prepare` for its corpus."""

    def split(self, name: str) -> Split:
        """The split 'train' or 'validation'."""


def resolve(config: ml_collections.ConfigDict, manifest: Manifest | None = None) -> ml_collections.ConfigDict:
    """The configuration that runs, as a copy.

    Args:
      config: the configuration that the user gives.
      manifest: the manifest of the prepared rows; None if there are none, as in benchmarks.

    Raises:
      ConfigError: with all problems found, a line each; each says what to do.
    """
    possible_values.check_values(config)
    config = decided(config)
    checks.check_together(config)
    steps_per_epoch = NOMINAL_STEPS_PER_EPOCH
    if manifest is not None:
        _check_data(config, manifest)
        steps_per_epoch = manifest.split('train').rows / config.batch_size
    config = in_steps(config, steps_per_epoch)
    checks.check_steps(config)
    return config


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError with all problems of a configuration that do not depend on the data."""
    resolve(config)


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`resolve` without its checks, for the configuration that a run has stored and an earlier version has checked."""
    return in_steps(decided(config), NOMINAL_STEPS_PER_EPOCH)


def decided(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy in which every open key (None or 'auto', except durations) has a value.

    Raises:
      ConfigError: if the configuration does not fit its `slice`.
    """
    config = copy.deepcopy(config)
    if config.optimizer.name in WEIGHT_DECAYS:  # stored configurations may name an optimizer that no longer exists
        config.optimizer.weight_decay = weight_decay(config.optimizer)
    _decide_model(config.model)
    if not config.slice:
        for key, value in _WITHOUT_SLICE.items():
            node, name = parent_of(config, key)
            if node[name] in (None, 'auto'):
                node[name] = value
        _decide_sharding(config)
        slice_fitting.fit_gather(config)
        return config
    num_devices, memory_bytes = slice_fitting.devices_of(config.slice)
    slice_fitting.fit_layout(config, num_devices)
    if config.model.attention_dropout is None:
        config.model.attention_dropout = _WITHOUT_SLICE['model.attention_dropout']
    if config.mesh.data is None:
        config.mesh.data = _WITHOUT_SLICE['mesh.data']
    _decide_sharding(config)
    if config.num_microbatches is None:
        slice_fitting.fit_microbatches(config, num_devices, memory_bytes)
    slice_fitting.fit_gather(config, num_devices, memory_bytes)
    return config


def _decide_sharding(config: ml_collections.ConfigDict) -> None:
    """Gives `sharding`, in place, the value that uses all axes of the mesh, if it is open."""
    if config.sharding == 'auto':
        whole, split = config.mesh.tensor == 1, config.mesh.fsdp != 1
        config.sharding = ('fsdp' if split else 'dp') if whole else 'fsdp_tp'


def _decide_model(m: ml_collections.ConfigDict) -> None:
    """Gives the open keys of the model the values that follow from other keys, in place."""
    if m.rotary_base_local is None:
        m.rotary_base_local = m.rotary_base
    if m.norm_bias is None:
        m.norm_bias = m.bias and m.norm_type == 'layer_norm'


def in_steps(config: ml_collections.ConfigDict, steps_per_epoch: float) -> ml_collections.ConfigDict:
    """A copy in which every duration that is set is given in steps."""
    config, total_steps = copy.deepcopy(config), None
    for prefix in DURATIONS:  # the length of the run comes first
        steps = resolve_steps(config, prefix, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        total_steps = steps if prefix == 'total' else total_steps
        node, name = parent_of(config, prefix)
        for unit in DURATION_UNITS:
            node[f'{name}_{unit}'] = steps if unit == 'steps' else None
    return config


def _check_data(config: ml_collections.ConfigDict, manifest: Manifest) -> None:
    pairs = {
        'sequence_length': (config.sequence_length, manifest.sequence_length),
        'vocab_size': (config.vocab_size, manifest.vocabulary.size),
        'data.packing': (config.data.packing, manifest.packing),
    }
    different = [
        f'  {key}: {ours!r} in the configuration, {theirs!r} in the data'
        for key, (ours, theirs) in pairs.items()
        if ours != theirs
    ]
    if different:
        raise ConfigError(
            f'the data in {config.data.directory} were prepared with other settings:\n' + '\n'.join(different) + '\n'
            'Use the configuration with which they were prepared, or prepare new data: set data.directory and run\n'
            f'    {manifest.prepare_command}'
        )
