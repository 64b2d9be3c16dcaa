"""Files that appear whole or not at all, whenever the program is killed."""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import BinaryIO


def write(path: pathlib.Path, fill: Callable[[BinaryIO], None], scratch: pathlib.Path | None = None) -> None:
    """Writes a file under a temporary name, flushes it to the disk, and only then gives it its name.

    Args:
      path: the file; an older one of that name is replaced.
      fill: writes the content to the open binary file it is given.
      scratch: where the temporary file lies, on the same disk; beside `path` unless given. A killed program
        leaves it to `remove_leftovers`.
    """
    temporary = (scratch or path.parent) / f'{path.name}.{os.getpid()}.tmp'
    try:
        with open(temporary, 'wb') as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_bytes(path: pathlib.Path, content: bytes, scratch: pathlib.Path | None = None) -> None:
    """`write` for content that is at hand."""
    write(path, lambda file: file.write(content), scratch)


def remove_leftovers(directory: pathlib.Path) -> None:
    """Removes the temporary files below a directory that killed programs have left; nobody must be writing there."""
    for path in directory.rglob('*.tmp'):
        if re.fullmatch(r'.+\.\d+\.tmp', path.name) and path.is_file():
            path.unlink(missing_ok=True)


def sync_directory(directory: pathlib.Path) -> None:
    """Makes the names in a directory durable, where the system offers that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
