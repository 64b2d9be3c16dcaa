"""Whether a configuration fits the prepared data, and the run that it goes on with."""

import json
import pathlib
from collections.abc import Callable

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.data import verification
from mlm_jax.data.manifest import Manifest
from mlm_jax.files.errors import ConfigError

# Keys that shape the state: a checkpoint cannot go on with another value.
STATE_KEYS = (
    'objective', 'vocab_size', 'sequence_length', 'optimizer.name', 'model.num_layers', 'model.width',
    'model.num_heads', 'model.ffn_width', 'model.positions', 'model.relative_buckets', 'model.norm',
    'model.embedding_norm', 'model.bias', 'model.mlp', 'model.norm_epsilon', 'mae_lm.decoder_layers',
    'mae_lm.decoder_width', 'mae_lm.decoder_ffn_width', 'exlm.num_states', 'exlm.transitions', 'exlm.transition_heads',
    'masking.repeats',
)  # fmt: skip

# A smaller weight decay that is multiplied by a learning rate does nothing in any run.
SMALLEST_DECAY = 1e-4


def check_data(config: ml_collections.ConfigDict, manifest: Manifest) -> None:
    """Checks that the data were prepared for this configuration, and have the tokenizer that they were made with.

    Raises:
      ConfigError: with both values of each key that differs, or with what is wrong with the tokenizer.
    """
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
    verification.check_tokenizer(pathlib.Path(config.data.directory).expanduser(), manifest)


def remarks(config: ml_collections.ConfigDict, num_rows: int) -> list[str]:
    """What a run can go on with, but can hardly be meant; a line each.

    Args:
      config: a checked configuration.
      num_rows: of an epoch.
    """
    lines, o, k = [], config.optimizer, config.masking
    decay = config_lib.weight_decay(o)
    if o.name != 'stable_adamw' and 0 < decay < SMALLEST_DECAY:
        lines.append(
            f'optimizer.weight_decay={decay} is a value for stable_adamw: {o.name} multiplies it by the learning rate, '
            f'after which it does nothing. The default of {o.name} is {config_lib.WEIGHT_DECAYS[o.name]}; 0 is no decay'
        )
    steps_per_epoch = num_rows / config.batch_size
    epochs = config_lib.resolve_steps(config, 'total', steps_per_epoch=steps_per_epoch) / steps_per_epoch
    if k.strategy == 'least_masked' and k.ratio_schedule not in ('constant', 'diffusion') and epochs < 2:
        lines.append(
            f'masking.strategy=least_masked moves its ratio from epoch to epoch, and this run has {epochs:.2g}: '
            'masking.strategy=uniform moves it at every step'
        )
    return lines


def check_resume(stored: dict, config: ml_collections.ConfigDict, note: Callable[[str], None]) -> None:
    """Names what changed since the checkpoint.

    Args:
      stored: the configuration in the checkpoint.
      config: the one to go on with.
      note: receives a line for each difference that a run can go on with.

    Raises:
      ConfigError: when a key that shapes the state differs.
    """
    # Keys that came after the checkpoint had their defaults then.
    different = config_lib.differences(config_lib.from_json(json.dumps(stored)), config)
    lines = {key: f'  {key}: {old!r} in the checkpoint, {new!r} now' for key, (old, new) in different.items()}
    fatal = [lines[key] for key in different if key in STATE_KEYS or _moves_state(key, *different[key], config)]
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
