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
_ours: dict[pathlib.Path, tuple[int, int]] = {}  # directory → the descriptor of its lock, and the process that made it


def new() -> pathlib.Path:
    """A new directory, which is deleted when this process ends, if `remove` has not done that before."""
    _remove_left_behind()
    descriptor, lock = _locked()
    directory = pathlib.Path(lock.removesuffix(_LOCK))
    directory.mkdir()
    _ours[directory] = descriptor, os.getpid()
    return directory


def _locked() -> tuple[int, str]:
    """The descriptor and the name of a new file that this process has locked."""
    while True:
        descriptor, lock = tempfile.mkstemp(_LOCK, _PREFIX)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel gives it back when this process ends, however that happens
        if os.path.exists(lock):  # another process may have taken it for one that was left behind
            return descriptor, lock
        os.close(descriptor)


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
    if made in _ours:
        os.close(_ours.pop(made)[0])


@atexit.register
def _remove_ours() -> None:
    for made, (_, pid) in list(_ours.items()):
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
