"""Orbax's managers of checkpoints, on a disk and in a bucket of Google Cloud Storage; and what takes their place.

In a bucket of Google Cloud Storage all processes write themselves, as on a shared disk: arrays by tensorstore, the rest
by gcsfs. A checkpoint is complete when its marker is there, which is written last. `transfers.py` has the other ways.
"""

import contextlib
import errno
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from mlm_jax.files import buckets
from mlm_jax.files.buckets import BucketPath
from mlm_jax.files.errors import ConfigError
from mlm_jax.training import integrity, transfers

_REQUEST = ' [tensorstore_spec'  # tensorstore's description of a failed request, a page long, begins so


def open_manager(directory: pathlib.Path, saving: Callable[[], int | None], **options: Any) -> Any:
    """Orbax's manager, or what takes its place in a bucket (`transfers.py`).

    It writes checksums into each checkpoint before the checkpoint gets its final name or its marker.

    Args:
      directory: the directory of the checkpoints.
      saving: returns the step that is being saved.
      **options: arguments of `ocp.CheckpointManagerOptions`.
    """

    def add_checksums() -> None:
        integrity.write_checksums(_being_written(directory, saving()))

    _silence_what_is_raised()
    if not isinstance(directory, BucketPath):
        return _orbax(directory, add_checksums, **options)
    if options.get('create') is False:
        return transfers.Copies(directory, _orbax_to_read)
    if directory.scheme != 'gs':
        return _uploads(directory, saving, **options)
    with write_errors(directory):
        # Otherwise etils takes TensorFlow wherever that is installed.
        os.environ.setdefault('EPATH_USE_TF', 'false')
        buckets.settle_for_others()
        return _orbax(epath.Path(str(directory)), add_checksums, **options)


def _orbax(
    directory: pathlib.Path | epath.Path, when_written: Callable[[], None] | None, **options: Any
) -> ocp.CheckpointManager:
    """Orbax's manager, which calls a function in a thread of process 0 after all have written their files."""
    is_async = options.get('enable_async_checkpointing', True)
    after_writing = ocp.AsyncOptions(post_finalization_callback=when_written) if is_async else None
    return ocp.CheckpointManager(
        directory, options=ocp.CheckpointManagerOptions(async_options=after_writing, **options)
    )


def _orbax_to_read(directory: pathlib.Path) -> ocp.CheckpointManager:
    return _orbax(directory, None, enable_async_checkpointing=False, cleanup_tmp_directories=False, create=False)


def _uploads(directory: BucketPath, saving: Callable[[], int | None], **options: Any) -> transfers.Uploads:
    if jax.process_count() > 1:
        raise ConfigError(
            f'{directory}: only one process can write checkpoints to {directory.scheme}://, and this run has '
            f'{jax.process_count()}: use a bucket of Google Cloud Storage (gs://), or a disk that all processes share'
        )

    def open_to_write(here: pathlib.Path, upload: Callable[[pathlib.Path], None]) -> ocp.CheckpointManager:
        return _orbax(here, lambda: upload(_being_written(here, saving())), max_to_keep=1)

    keep = options.get('max_to_keep'), options.get('keep_period')
    return transfers.Uploads(directory, _orbax_to_read, open_to_write, *keep)


def _being_written(directory: pathlib.Path, step: int | None) -> pathlib.Path:
    """The directory into which Orbax writes a checkpoint."""
    if isinstance(directory, BucketPath):
        return directory / str(step)
    name = re.compile(rf'{step}(\D.*)?')
    return max((path for path in directory.iterdir() if name.fullmatch(path.name)), key=_modified)


def _modified(path: pathlib.Path) -> float:
    return path.stat().st_mtime


@functools.cache
def _silence_what_is_raised() -> None:
    """Drops tracebacks that Orbax and tensorstore print in other threads for failed writes; they raise them, too."""
    logging.get_absl_logger().addFilter(lambda record: not (record.exc_info and '/orbax/' in record.pathname))
    before = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != 'Event loop is closed':
            before(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def write_errors(directory: pathlib.Path) -> Iterator[None]:
    """Raises OSError instead of the ValueError that Orbax raises if its C++ part cannot write.

    In a bucket, it stands for all that the packages for it raise.
    """
    try:
        yield
    except (OSError, ConfigError):
        raise
    except Exception as error:
        if isinstance(directory, BucketPath):
            raise OSError(errno.EIO, _bucket_error(error), str(directory)) from error
        number = re.search(r"(?:OS error |os_error_code=')(\d+)", str(error)) if isinstance(error, ValueError) else None
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from error


def read_error(directory: pathlib.Path, error: ValueError) -> OSError | None:
    """What an error of a restore is where tensorstore could not read from a bucket; None where it is another one."""
    is_of_bucket = isinstance(directory, BucketPath) and _REQUEST in str(error)
    return OSError(errno.EIO, _bucket_error(error), str(directory)) if is_of_bucket else None


def _bucket_error(error: Exception) -> str:
    words = buckets.reason(error).partition(_REQUEST)[0]
    if 'storage.buckets.get' in words:
        words += '. Orbax asks what kind of bucket it is, which the role Storage Legacy Bucket Reader allows'
    return words
