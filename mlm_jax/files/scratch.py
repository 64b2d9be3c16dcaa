"""Directories on the disk of this machine for what passes through it on the way to a bucket or back.

They lie where temporary files do (TMPDIR). A process deletes its own; what a killed one left, the next one deletes.
"""

import atexit
import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

_PREFIX, _LOCK = 'mlm_jax_', '.lock'


def new() -> pathlib.Path:
    """A new directory, which is deleted when this process ends, if `remove` has not done that before."""
    _remove_left_behind()
    descriptor, lock = tempfile.mkstemp(_LOCK, _PREFIX)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel gives it back when this process ends, however that happens
    directory = pathlib.Path(lock.removesuffix(_LOCK))
    directory.mkdir()
    atexit.register(_remove_if_ours, directory, os.getpid())
    return directory


@contextlib.contextmanager
def directory() -> Iterator[pathlib.Path]:
    """A new directory for the block."""
    made = new()
    try:
        yield made
    finally:
        remove(made)


def remove(made: pathlib.Path) -> None:
    """Deletes a directory that `new` has made, if it is there."""
    shutil.rmtree(made, ignore_errors=True)
    made.with_name(made.name + _LOCK).unlink(missing_ok=True)


def _remove_if_ours(made: pathlib.Path, pid: int) -> None:
    if os.getpid() == pid:  # and not a worker that was forked later
        remove(made)


def _remove_left_behind() -> None:
    """Deletes the directories of processes that are no more."""
    for lock in pathlib.Path(tempfile.gettempdir()).glob(f'{_PREFIX}*{_LOCK}'):
        with contextlib.suppress(OSError):  # of another user; or another process deletes it, too
            descriptor = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(lock.with_name(lock.name.removesuffix(_LOCK)))
            finally:
                os.close(descriptor)
