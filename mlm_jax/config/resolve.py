"""From the configuration that a user gives to the one that runs.

After `resolve` everything has passed every check that needs no device, what was left open has a value, and durations
are steps: this is what runs, and what `config.json` in a workdir holds.
"""

import copy

import ml_collections

from mlm_jax.config import checks, fitting
from mlm_jax.config.access import get
from mlm_jax.config.durations import DURATION_UNITS, DURATIONS, resolve_steps
from mlm_jax.config.optimizer_defaults import weight_decay
from mlm_jax.files.errors import ConfigError

# Where no data are at hand, as for benchmarks: only durations in epochs depend on it.
NOMINAL_STEPS_PER_EPOCH = 1000.0
# Values that are chosen elsewhere where they are open, and what they are without a slice to fit to.
_WITHOUT_SLICE = {
    'accelerator': 'any', 'sharding': 'dp', 'num_microbatches': 1, 'model.attention_backend': 'xla',
    'model.attention_dropout': 0.1, 'mesh.data': -1, 'mesh.fsdp': 1,
}  # fmt: skip


def resolve(config: ml_collections.ConfigDict, manifest=None) -> ml_collections.ConfigDict:
    """The configuration that runs, as a copy.

    Args:
      config: as the user gives it.
      manifest: a `data.manifest.Manifest` of the prepared rows; None where there are none, as for benchmarks.

    Raises:
      ConfigError: with all that is wrong, each with its cure.
    """
    checks.check_values(config)
    config = decided(config)
    checks.check_together(config)
    if manifest is None:
        return in_steps(config, NOMINAL_STEPS_PER_EPOCH)
    _check_data(config, manifest)
    return in_steps(config, manifest.split('train').rows / config.batch_size)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError with all that is wrong with a configuration, whatever the data."""
    resolve(config)


def decided(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy in which a value stands wherever a key leaves the choice to others; as it was, where none is open.

    Raises:
      ConfigError: when the configuration does not fit its `slice`.
    """
    config = copy.deepcopy(config)
    config.optimizer.weight_decay = weight_decay(config.optimizer)
    if not config.slice:
        for key, value in _WITHOUT_SLICE.items():
            parent, _, name = key.rpartition('.')
            node = get(config, parent) if parent else config
            if node[name] in (None, 'auto'):
                node[name] = value
        return config
    num_devices, memory_bytes = fitting.devices_of(config.slice)
    fitting.fit_layout(config, num_devices)
    if config.model.attention_dropout is None:
        config.model.attention_dropout = _WITHOUT_SLICE['model.attention_dropout']
    if config.mesh.data is None:
        config.mesh.data = _WITHOUT_SLICE['mesh.data']
    if config.sharding == 'auto':
        whole, split = config.mesh.tensor == 1, config.mesh.fsdp != 1
        config.sharding = ('fsdp' if split else 'dp') if whole else 'fsdp_tp'
    if config.num_microbatches is None:
        fitting.fit_microbatches(config, num_devices, memory_bytes)
    return config


def in_steps(config: ml_collections.ConfigDict, steps_per_epoch: float) -> ml_collections.ConfigDict:
    """A copy in which every duration is given in steps, or not at all."""
    config, total_steps = copy.deepcopy(config), None
    for prefix in DURATIONS:  # the length of the run comes first
        steps = resolve_steps(config, prefix, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        total_steps = steps if prefix == 'total' else total_steps
        parent, _, name = prefix.rpartition('.')
        node = get(config, parent) if parent else config
        for unit in DURATION_UNITS:
            node[f'{name}_{unit}'] = steps if unit == 'steps' else None
    return config


def _check_data(config: ml_collections.ConfigDict, manifest) -> None:
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
            'Use the configuration they were prepared with, or prepare others: set data.directory and run\n'
            '    python -m mlm_jax.prepare --config=<this configuration, with the same overrides>'
        )
