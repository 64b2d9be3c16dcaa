"""The files that a run writes to its workdir, except checkpoints and metrics."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.files import atomic, directory_lock
from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel import agreement
from mlm_jax.training import checkpoints

# Some file systems show a new file to other machines only after a while.
_SECONDS_TO_APPEAR = 10.0


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other programs from writing to a directory: process 0 locks it for all (`directory_lock.sole_writer`).

    Raises:
      ConfigError: as `sole_writer`; or if not all processes of the run see the same directory.
    """
    with contextlib.ExitStack() as stack:
        agreement.of_leader(lambda: stack.enter_context(directory_lock.sole_writer(workdir)))
        _check_shared(workdir)
        yield


def _check_shared(directory: pathlib.Path) -> None:
    """Raises ConfigError on all processes unless each of them reads what process 0 writes to a directory."""
    if jax.process_count() == 1:
        return
    path = directory / agreement.from_leader(lambda: _write_random_file(directory))
    blind = agreement.where_false(_appears(path))
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            path.unlink()
    if blind:
        names = ', '.join(f'process {i}' for i in blind)
        raise ConfigError(
            f'{directory} is not the same directory for all processes: what process 0 writes there, {names} cannot '
            'read. Give a directory on a disk that all machines share, or in a bucket, such as gs://BUCKET/PATH'
        )


def _write_random_file(directory: pathlib.Path) -> str:
    """Writes a file that no other directory has, and returns its name, which is also its content."""
    name = f'.shared.{secrets.randbits(64)}.tmp'  # `atomic.remove_leftovers` deletes it if this process is killed
    atomic.write_bytes(directory / name, name.encode())
    return name


def _appears(path: pathlib.Path) -> bool:
    """Whether a file of `_write_random_file` is there, now or a little later."""
    end = time.monotonic() + _SECONDS_TO_APPEAR
    while True:
        with contextlib.suppress(OSError):
            if path.read_bytes() == path.name.encode():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


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
