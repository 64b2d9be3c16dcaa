"""The files that a run writes to its workdir, except checkpoints and metrics."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.files import atomic, directory_lock
from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel import agreement
from mlm_jax.training import checkpoints


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other programs from writing to a directory: process 0 locks it for all (`directory_lock.sole_writer`)."""
    with contextlib.ExitStack() as stack:
        agreement.of_leader(lambda: stack.enter_context(directory_lock.sole_writer(workdir)))
        yield


@contextlib.contextmanager
def saying_what_is_saved(saver: checkpoints.Checkpoints) -> Iterator[None]:
    """Adds a note to errors of the disk that says from which checkpoint the run will resume."""
    try:
        yield
    except OSError as error:
        try:
            step = saver.newest_written()
        except OSError:  # of a bucket that cannot be reached
            raise error from None
        if step is None:
            error.add_note('There is no checkpoint yet: the same command starts from the beginning.')
        else:
            error.add_note(f'The last complete checkpoint is that of step {step:,}: the same command resumes from it.')
        raise


def write_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes `config.json`."""
    atomic.write_bytes(workdir / 'config.json', config_lib.to_json(config).encode())


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Reads `config.json`; if it is damaged, prints so, and reads the configuration in the newest checkpoint.

    Raises:
      ConfigError: if the directory is not a workdir, or no readable configuration is left.
    """
    path = workdir / 'config.json'
    if not path.exists():
        raise ConfigError(f'{workdir} is not the workdir of a run: it has no config.json')
    try:
        values = read_json(path, 'Start the training of that run again, with its command, which writes the file again')
    except ConfigError:
        if (found := checkpoints.newest_position(workdir / 'checkpoints')) is None:
            raise
        step, position = found
        values = position.config
        print(f'{path} is damaged: the configuration is taken from the checkpoint of step {step}', file=sys.stderr)
    return config_lib.from_json(json.dumps(values))


def read_json(path: pathlib.Path, cure: str) -> dict:
    """The JSON object in a file; ConfigError, which ends with the sentence `cure`, if the file is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise ConfigError(f'{path} is damaged: {error}. {cure}') from error
    if not isinstance(value, dict):
        raise ConfigError(f'{path} is damaged: it does not hold a JSON object. {cure}')
    return value


def write_environment(workdir: pathlib.Path) -> None:
    """Writes the `environment` to `environment.json`."""
    atomic.write_bytes(workdir / 'environment.json', f'{json.dumps(environment(), indent=2)}\n'.encode())


def environment(more: Sequence[str] = ()) -> dict[str, Any]:
    """Command, commit, versions, devices, and the processor with the cores in use.

    Args:
      more: packages whose versions are wanted besides those that every run has.
    """
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'sentencepiece', 'numpy')
    return {
        'command': sys.argv,
        'commit': _commit(),
        'python': platform.python_version(),
        'versions': {name: importlib.metadata.version(name) for name in (*packages, *more)},
        'devices': {
            'kind': jax.devices()[0].device_kind,
            'count': jax.device_count(),
            'processes': jax.process_count(),
            'processor': _processor(),
            'cores': count_cores(),
        },
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
    }


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _processor() -> str:
    """The name of the processor, as Linux tells it; elsewhere its architecture."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the code, with '-dirty' when files differ from it; None outside a git repository."""
    command = ['git', 'describe', '--always', '--abbrev=40', '--dirty', '--exclude=*']
    try:
        result = subprocess.run(command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
