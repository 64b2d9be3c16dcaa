"""Checkpoints in buckets that go through the disk of this machine, in the place of a manager of Orbax.

`Copies` reads: it fetches the parts of a checkpoint that are wanted, and lets Orbax restore them from there. So models
are read from all buckets, whoever wrote or copied them there. `Uploads` also writes, for one process, to buckets that
Orbax cannot write to (S3): Orbax writes a checkpoint to the disk, and all its files are then copied, a marker last.

The disk must have space for what is read, or for two checkpoints while writing.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlm_jax.files import buckets, scratch
from mlm_jax.files.buckets import BucketPath
from mlm_jax.training import integrity

# The last object of a checkpoint in a bucket: without it, its writing was interrupted. Orbax calls its own so, too.
MARKER = 'commit_success.txt'


def steps_in(directory: BucketPath) -> list[int]:
    """The steps of the checkpoints in a bucket that say that they are whole: by a marker, or by checksums.

    What was copied from a disk has no marker; `integrity.damage` tells whether the copy is complete.
    """
    return sorted(_steps_with(directory, MARKER) | _steps_with(directory, integrity.CHECKSUMS_FILE))


def _steps_with(directory: BucketPath, name: str) -> set[int]:
    return {int(path.parent.name) for path in directory.glob(f'*/{name}') if path.parent.name.isdecimal()}


def mark_whole(directory: BucketPath, is_whole: Callable[[int], bool]) -> None:
    """Gives a marker to checkpoints that lack one and are whole, which Orbax would take for unfinished otherwise."""
    for step in _steps_with(directory, integrity.CHECKSUMS_FILE) - _steps_with(directory, MARKER):
        if is_whole(step):
            mark(directory, step)


def mark(directory: BucketPath, step: int) -> None:
    """Writes the marker of a checkpoint."""
    (directory / str(step) / MARKER).write_bytes(b'')


def remove(directory: BucketPath, step: int) -> None:
    """Deletes a checkpoint, its marker first."""
    for name in (MARKER, integrity.CHECKSUMS_FILE):
        (directory / str(step) / name).unlink(missing_ok=True)
    buckets.remove_tree(directory / str(step))


class Copies:
    """The checkpoints in a bucket, to be read."""

    def __init__(self, directory: BucketPath, open_here: Callable[[pathlib.Path], Any]):
        """`open_here` opens Orbax's manager of a directory on the disk, to read."""
        self.directory, self._open_here = directory, open_here

    def all_steps(self) -> list[int]:
        """The steps of all complete checkpoints."""
        return steps_in(self.directory)

    def latest_step(self) -> int | None:
        """The step of the newest of them."""
        return max(self.all_steps(), default=None)

    def restore(self, step: int, args: Mapping[str, Any]) -> Any:
        """As Orbax does, from a copy of the parts in `args`."""
        source, parts = self.directory / str(step), {*args.keys()}
        names = [name for name in source.listing() if '/' not in name or name.partition('/')[0] in parts]
        with scratch.directory() as here:
            buckets.download(source, here / str(step), names)
            manager = self._open_here(here)
            restored = manager.restore(step, args=args)
            manager.close()
        return restored

    def wait_until_finished(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """Nothing is open."""


class Uploads(Copies):
    """The checkpoints in a bucket, written by this process alone."""

    def __init__(
        self,
        directory: BucketPath,
        open_here: Callable[[pathlib.Path], Any],
        open_to_write: Callable[[pathlib.Path, Callable[[pathlib.Path], None]], Any],
        max_to_keep: int | None,
        keep_period: int | None,
    ):
        """Removes what interrupted writes have left.

        Args:
          directory: of the checkpoints.
          open_here: as for `Copies`.
          open_to_write: opens Orbax's manager of a directory on the disk, which keeps one checkpoint; it calls the
            function with the directory of each checkpoint whose files it has written, in its writing thread.
          max_to_keep: how many of the newest checkpoints to keep; None keeps all.
          keep_period: checkpoints at multiples of this number of steps are kept in addition.
        """
        super().__init__(directory, open_here)
        self._keep, self._period, self._saving = max_to_keep, keep_period, 0
        for path in list(directory.iterdir()):
            if path.name.isdecimal() and not (path / MARKER).is_file():
                remove(directory, int(path.name))
        self._here = scratch.new()
        self._manager = open_to_write(self._here, self._upload)

    def save(self, step: int, args: Any) -> None:
        """As Orbax does: copies the state, and writes it in the background."""
        self._saving = step
        self._manager.save(step, args=args)

    def _upload(self, written: pathlib.Path) -> None:
        integrity.write_checksums(written, 'md5')
        target = self.directory / str(self._saving)
        remove(self.directory, self._saving)
        buckets.upload(written, target, last=integrity.CHECKSUMS_FILE)
        mark(self.directory, self._saving)
        for step in superfluous(self.all_steps(), self._keep, self._period):
            remove(self.directory, step)

    def is_saving_in_progress(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._manager.is_saving_in_progress()

    def wait_until_finished(self) -> None:
        """Waits until it is written; raises what has failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Deletes what is on the disk."""
        self._manager.close()
        scratch.remove(self._here)


def superfluous(steps: Iterable[int], max_to_keep: int | None, keep_period: int | None) -> list[int]:
    """Of the steps of checkpoints, those that are not kept, as Orbax chooses them."""
    old = sorted(steps)[:-max_to_keep] if max_to_keep else []
    return [step for step in old if not (keep_period and step % keep_period == 0)]
