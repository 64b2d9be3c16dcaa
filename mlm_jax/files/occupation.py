"""A directory into which one program writes at a time."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

from mlm_jax.files import atomic
from mlm_jax.files.errors import ConfigError

LOCK_FILE = '.lock'
_PROBE_FILE = '.probe'
_PROBE_BYTES = 65536
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of file systems that have none


@contextlib.contextmanager
def sole_writer(directory: pathlib.Path) -> Iterator[None]:
    """Makes `directory`, keeps other programs out of it, removes what killed ones left, and tries to write.

    The kernel frees the lock when its holder ends, however it does: a lock is never left behind, only its file is.

    Raises:
      ConfigError: when another process is at work in the directory.
      OSError: when nothing can be written there.
    """
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
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f'{directory} is in use by {_describe(_holder(file))}: wait for its end, or stop it. Two programs would '
            'overwrite what the other has written'
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        holder = _holder(file)
        if holder and not _is_over(holder):
            raise ConfigError(
                f'{directory} seems to be in use by {_describe(holder)}; its file system has no locks that would tell. '
                f'If that process is over, delete {directory / LOCK_FILE}'
            ) from None


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
    holder = {
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'since': time.strftime('%Y-%m-%d %H:%M:%S'),
        'command': pathlib.Path(sys.argv[0]).stem,
    }
    file.truncate(0)
    file.write(json.dumps(holder).encode())
    file.flush()


def _try_to_write(directory: pathlib.Path) -> None:
    """Raises what a disk that is full or may not be written says, before hours of work."""
    path = directory / _PROBE_FILE
    try:
        with open(path, 'wb') as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno), str(directory)) from error
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
