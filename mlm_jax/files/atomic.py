"""Writes files so that each one appears complete or not at all, even when the program is killed."""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import BinaryIO


def write(path: pathlib.Path, fill: Callable[[BinaryIO], object], scratch: pathlib.Path | None = None) -> None:
    """Writes a file under a temporary name, flushes it to the disk, and only then renames it to `path`.

    Args:
      path: the file; an existing file of that name is replaced.
      fill: receives the open binary file and writes the content to it; its result is ignored.
      scratch: the directory of the temporary file, on the same disk as `path`; by default the directory of `path`.
        When the program is killed, the temporary file stays there until `remove_leftovers` deletes it.
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
    """Writes bytes as `write` does."""
    write(path, lambda file: file.write(content), scratch)


def remove_leftovers(directory: pathlib.Path) -> None:
    """Removes temporary files that killed programs left below `directory`; no program may be writing there."""
    for path in directory.rglob('*.tmp'):
        if re.fullmatch(r'.+\.\d+\.tmp', path.name) and path.is_file():
            path.unlink(missing_ok=True)


def sync_directory(directory: pathlib.Path) -> None:
    """Flushes the file names in a directory to the disk, where the system supports that."""
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
