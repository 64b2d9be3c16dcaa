"""Writes files and objects so that each one appears complete or not at all, even when the program is killed."""

import contextlib
import hashlib
import os
import pathlib
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mlm_jax.files import scratch as scratch_lib
from mlm_jax.files.buckets import BucketPath

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def opened(path: pathlib.Path, scratch: pathlib.Path | None = None) -> Iterator[BinaryIO]:
    """Opens a file for writing under a temporary name; at the end, flushes it to the disk and renames it to `path`.

    If the block raises, nothing is written.

    Args:
      path: the file; an existing file of that name is replaced.
      scratch: the directory of the temporary file, on the same disk as `path`; by default the directory of `path`.
        No two temporary files have the same name, whatever the machines that share the disk.
        When the program is killed, the temporary file stays there until `remove_leftovers` deletes it. The content
        of an object in a bucket is collected where the temporary files of this machine are (TMPDIR) instead.
    """
    if isinstance(path, BucketPath):
        with scratch_lib.directory() as directory:
            content = directory / 'content'
            with open(content, 'wb') as file:
                yield file
            path.put(content)
        return
    temporary = (scratch or path.parent) / f'{path.name}.{secrets.randbits(64)}.tmp'
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write(path: pathlib.Path, fill: Callable[[BinaryIO], object], scratch: pathlib.Path | None = None) -> None:
    """Writes a file as `opened` does; `fill` receives the open file and writes the content, its result is ignored."""
    with opened(path, scratch) as file:
        fill(file)


def write_bytes(path: pathlib.Path, content: bytes, scratch: pathlib.Path | None = None) -> None:
    """Writes bytes as `write` does; those of an object in a bucket without a temporary file."""
    if isinstance(path, BucketPath):
        path.write_bytes(content)
    else:
        write(path, lambda file: file.write(content), scratch)


def remove_leftovers(directory: pathlib.Path) -> None:
    """Removes temporary files that killed programs left below `directory`; no program may be writing there."""
    if isinstance(directory, BucketPath):
        return
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


def sha256(path: pathlib.Path, start: int = 0, stop: int | None = None) -> str:
    """The SHA-256, in hexadecimal, of the bytes `start` … `stop` − 1 of a file, by default of all its content."""
    with path.open('rb') as file:
        if not start and stop is None:
            return hashlib.file_digest(file, 'sha256').hexdigest()
        digest, left = hashlib.sha256(), (sys.maxsize if stop is None else stop) - start
        file.seek(start)
        while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def is_recorded(path: pathlib.Path, record: pathlib.Path) -> bool:
    """Whether `path` exists and has the SHA-256 that the file `record` holds."""
    return path.exists() and record.exists() and record.read_bytes() == sha256(path).encode()
