"""The files that a run leaves in its workdir, besides checkpoints and metrics."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.data import atomic


def write_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes `config.json`."""
    atomic.write_bytes(workdir / 'config.json', config_lib.to_json(config).encode())


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Reads `config.json`.

    Raises:
      ConfigError: when the directory is no workdir.
    """
    path = workdir / 'config.json'
    if not path.exists():
        raise config_lib.ConfigError(f'{workdir} is not the workdir of a run: it has no config.json')
    return config_lib.from_json(path.read_text(encoding='utf-8'))


def write_environment(workdir: pathlib.Path) -> None:
    """Writes `environment.json`: command, commit, versions and devices."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'sentencepiece', 'numpy')
    environment = {
        'command': sys.argv,
        'commit': _commit(),
        'python': platform.python_version(),
        'versions': {name: importlib.metadata.version(name) for name in packages},
        'devices': {
            'kind': jax.devices()[0].device_kind,
            'count': jax.device_count(),
            'processes': jax.process_count(),
        },
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
    }
    atomic.write_bytes(workdir / 'environment.json', f'{json.dumps(environment, indent=2)}\n'.encode())


def _commit() -> str | None:
    """The commit of the code, with '-dirty' when files differ from it; None outside a git repository."""
    command = ['git', 'describe', '--always', '--abbrev=40', '--dirty', '--exclude=*']
    try:
        result = subprocess.run(command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
