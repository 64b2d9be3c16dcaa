"""Files that grow, in a bucket: they are written on a disk of this machine, and copied there whole now and then.

A bucket can append to no object. What a kill takes is what was written since the last copy: `SECONDS` at most, and
nothing of what `sync` has confirmed. Each copy sends a changed file again from its start, a metrics.jsonl of 10 MB for
instance (20,000 log lines), in a fraction of a second of each minute.
"""

import pathlib
import time

from mlm_jax.files import scratch
from mlm_jax.files.buckets import BucketPath

SECONDS = 60.0  # between two copies, unless `sync` is called


class Mirror:
    """A directory for files that grow; of a directory on a disk, that directory itself, where nothing is copied.

    Attributes:
      here: where files are to be written.
    """

    def __init__(self, directory: pathlib.Path):
        """Mirrors `directory`; nothing of what lies there is here before `fetch`."""
        self._directory, self._copies = directory, isinstance(directory, BucketPath)
        self.here = scratch.new() if self._copies else directory
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}  # file → its size and time when it was copied
        self._copied_at = time.monotonic()

    def fetch(self, name: str) -> None:
        """Copies a file from the bucket, if it is there."""
        if self._copies and (source := self._directory / name).exists():
            (self.here / name).write_bytes(source.read_bytes())
            self._copied[self.here / name] = _stamp(self.here / name)

    def sync(self) -> None:
        """Copies what has changed to the bucket; OSError if that fails."""
        self._copied_at = time.monotonic()
        if not self._copies:
            return
        for path in sorted(self.here.rglob('*')):
            if path.is_symlink() or not path.is_file() or self._copied.get(path) == (stamp := _stamp(path)):
                continue
            (self._directory / path.relative_to(self.here)).write_bytes(path.read_bytes())
            self._copied[path] = stamp

    @property
    def is_due(self) -> bool:
        """Whether the last `sync` is `SECONDS` old."""
        return time.monotonic() - self._copied_at >= SECONDS

    def close(self) -> None:
        """Copies what has changed, and deletes what is here."""
        self.sync()
        if self._copies:
            scratch.remove(self.here)
            self._copies = False


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
