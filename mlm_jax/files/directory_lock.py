"""Locks a directory so that only one program writes into it at a time."""

import contextlib
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

from mlm_jax.files import atomic, file_lock, lease
from mlm_jax.files.buckets import BucketPath
from mlm_jax.files.errors import ConfigError

LOCK_FILE = '.lock'
_PROBE_FILE = '.probe'
_PROBE_BYTES = 65536


@contextlib.contextmanager
def sole_writer(directory: pathlib.Path) -> Iterator[None]:
    """Creates and locks `directory`, removes what killed programs left there, and tests that it can be written to.

    The kernel releases the lock when its holder ends, however that happens. So a lock is never left behind; only the
    lock file is. A directory in a bucket is locked by a lease, which expires if its holder is killed (`lease.py`).

    Raises:
      ConfigError: if another process is using the directory.
      OSError: if the directory cannot be written to.
    """
    if isinstance(directory, BucketPath):
        with lease.held(directory / LOCK_FILE, _this_process(), _describe):
            yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK_FILE, 'a+b') as file:
        _lock(file, directory)
        atomic.remove_leftovers(directory)
        _try_to_write(directory)
        _write_holder(file)
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file: BinaryIO, directory: pathlib.Path) -> None:
    try:
        has_locks = file_lock.take(file.fileno())
    except BlockingIOError:
        raise ConfigError(
            f'{directory} is in use by {_describe(_holder(file))}: wait until that process ends, or stop it. Two '
            "programs would overwrite each other's files"
        ) from None
    holder = None if has_locks else _holder(file)
    if holder and not _is_over(holder):
        raise ConfigError(
            f'{directory} seems to be in use by {_describe(holder)}; its file system has no locks, so this cannot be '
            f'checked. If that process has ended, delete {directory / LOCK_FILE}'
        )


def _holder(file: BinaryIO) -> dict | None:
    file.seek(0)
    with contextlib.suppress(ValueError):
        holder = json.loads(file.read())
        return holder if isinstance(holder, dict) else None
    return None


def _describe(holder: dict | None) -> str:
    if not holder:
        return 'another process'
    return f'process {holder.get("pid")} on {holder.get("host")}, since {holder.get("since")} ({holder.get("command")})'


def _is_over(holder: dict) -> bool:
    if holder.get('host') != socket.gethostname():
        return False
    try:
        os.kill(int(holder['pid']), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        return False
    return False


def _write_holder(file: BinaryIO) -> None:
    file.truncate(0)
    file.write(json.dumps(_this_process()).encode())
    file.flush()


def _this_process() -> dict:
    return {
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'since': time.strftime('%Y-%m-%d %H:%M:%S'),
        'command': pathlib.Path(sys.argv[0]).stem,
    }


def _try_to_write(directory: pathlib.Path) -> None:
    """Raises the OSError of a full or read-only disk now, before hours of work."""
    path = directory / _PROBE_FILE
    try:
        with open(path, 'wb') as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from error
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
