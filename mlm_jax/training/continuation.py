"""Pretraining that starts from the parameters of another run: on new text, or under other masks."""

import pathlib

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError
from mlm_jax.data import atomic
from mlm_jax.data.manifest import Manifest
from mlm_jax.training import checkpoints
from mlm_jax.training.checks import STATE_KEYS
from mlm_jax.training.state import TrainState
from mlm_jax.training.workdir import read_config


def check_source(config: ml_collections.ConfigDict, manifest: Manifest) -> None:
    """Checks that the parameters of the run in `config.init_from` fit this model and this tokenizer.

    Raises:
      ConfigError: with what differs, or when `init_from` is no workdir; nothing where it is ''.
    """
    if not config.init_from:
        return
    source = pathlib.Path(config.init_from).expanduser()
    different = config_lib.differences(read_config(source), config)
    keys = [key for key in STATE_KEYS if key in different and not key.startswith('optimizer.')]
    if keys:
        lines = '\n'.join(f'  {key}: {different[key][0]!r} there, {different[key][1]!r} here' for key in keys)
        raise ConfigError(
            f'the parameters in init_from={config.init_from} are of another model:\n{lines}\nUse its values'
        )
    if atomic.sha256(source / 'tokenizer.model') != manifest.tokenizer_sha256:
        raise ConfigError(
            f'the data in {config.data.directory} were not made with the tokenizer of init_from={config.init_from}. '
            f'Prepare them with tokenizer.model={source / "tokenizer.model"}, in another data.directory'
        )


def start_from(source: str, state: TrainState) -> TrainState:
    """`state` with the parameters of the newest checkpoint of a run, laid out as they are in `state`.

    Step and optimizer start afresh.

    Args:
      source: the workdir of a run that `check_source` has found fitting.
      state: fresh, on the mesh.

    Raises:
      FileNotFoundError: without a checkpoint.
    """
    saver = checkpoints.Checkpoints(pathlib.Path(source).expanduser() / 'checkpoints', read_only=True)
    params = saver.restore_params(state.params)
    saver.close()
    return state.replace(params=params)
