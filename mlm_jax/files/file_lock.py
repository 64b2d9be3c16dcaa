"""Locks of the kernel on files, which end with the process that holds them, however that ends."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # errors of file systems without locks
_held: set[int] = set()  # the descriptors of files that this process holds


def take(descriptor: int, shared: bool = False) -> bool:
    """Locks an open file without waiting; returns False if its file system has no locks.

    Args:
      descriptor: of a file that is open for reading and writing: NFS refuses other locks than shared ones otherwise,
        and does not tell other machines of locks on directories.
      shared: whether others may hold the lock, too, that want to share it.

    Raises:
      BlockingIOError: if another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextlib.contextmanager
def held(path: pathlib.Path, shared: bool = False) -> Iterator[bool]:
    """Locks a file, which is made if there is none, and which a holder that does not share it removes in the end.

    Those that share it leave it there, as a killed process does, for they cannot know who else opens it.

    Args:
      path: the file, in a directory that exists.
      shared: as for `take`.

    Yields:
      Whether the lock is held: not where the file system has no locks, or where nothing can be written.

    Raises:
      BlockingIOError: if another process holds the lock.
      OSError: if the file cannot be opened for another reason.
    """
    descriptor, is_locked = _open_locked(path, shared)
    if descriptor is None:
        yield False
        return
    _held.add(descriptor)
    try:
        yield is_locked
    finally:
        _held.remove(descriptor)
        if not shared and _is_at(descriptor, path):  # without locks, another may have made it anew
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: pathlib.Path, shared: bool) -> tuple[int | None, bool]:
    """The descriptor of the file, which nobody has removed before it was locked; and whether it is locked."""
    while (descriptor := _open(path)) is not None:
        try:
            is_locked = take(descriptor, shared)
        except OSError:
            os.close(descriptor)
            raise
        if not is_locked or _is_at(descriptor, path):  # otherwise its former holder has just removed it
            return descriptor, is_locked
        os.close(descriptor)
    return None, False


def _open(path: pathlib.Path) -> int | None:
    """Opens a file, which is made if there is none; None where it cannot be made, as on a write-protected disk."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno == errno.EROFS or (error.errno == errno.EACCES and not path.exists()):
            return None
        raise


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _release_in_fork() -> None:
    """A forked worker must not hold the lock: it may outlive a killed parent for a moment, and another would wait."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_release_in_fork)
