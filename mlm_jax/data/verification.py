"""Checks that a prepared directory still matches its manifest.

Checking sizes, shapes and dtypes is fast; checking the content means reading it (SHA-256, about 1 GB/s on each core).
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm

from mlm_jax.data import masking_tables, shards
from mlm_jax.data.manifest import CHANGED, Manifest, Shard
from mlm_jax.files import progress
from mlm_jax.files.errors import ConfigError

_CHUNK_BYTES = 1 << 20
_NAMED = 20  # messages name at most so many damaged files


@dataclasses.dataclass(frozen=True)
class Findings:
    """The result of a check.

    Attributes:
      wrong: file → what is wrong with it, as a clause such as 'is missing', in the order of the manifest.
      verified: the number of files that were compared with their checksums.
      unknown: the number of files for which the manifest has no checksum.
      surplus: shards that the manifest does not list and that are therefore never read.
    """

    wrong: dict[str, str]
    verified: int
    unknown: int
    surplus: tuple[str, ...]


def hashes(manifest: Manifest) -> dict[str, str]:
    """Maps every file of a prepared directory except the manifest to its SHA-256, or to '' if that is unknown."""
    known = {manifest.tokenizer: manifest.tokenizer_sha256}
    if manifest.tables:
        known[manifest.tables] = manifest.tables_sha256
    return known | {shard.file: shard.sha256 for split in manifest.splits.values() for shard in split.shards}


def examine(directory: pathlib.Path, manifest: Manifest, content: bool) -> Findings:
    """Compares the files of a directory with its manifest.

    Args:
      directory: a directory that `prepare` wrote.
      manifest: its manifest.
      content: whether to compare checksums too; a progress bar appears if that takes more than a few seconds.
    """
    wrong = {name: clause for name, clause in _layouts(directory, manifest) if clause}
    known = {name: sha256 for name, sha256 in hashes(manifest).items() if name not in wrong}
    to_hash = {name: sha256 for name, sha256 in known.items() if sha256} if content else {}
    sizes = {name: (directory / name).stat().st_size for name in to_hash}
    with (
        progress_bar('verifying', sum(sizes.values())) as bar,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        found_wrong = pool.map(lambda item: _difference(directory / item[0], item[1]), to_hash.items())
        for name, clause in zip(to_hash, found_wrong):
            if clause:
                wrong[name] = clause
            bar.update(sizes[name])
    if manifest.tables and manifest.tables not in wrong:
        wrong |= _unreadable_tables(directory, manifest)
    named = hashes(manifest)
    found = {path.name for name in manifest.splits for path in directory.glob(f'{name}-*-of-*.npy')}
    return Findings(
        wrong={name: wrong[name] for name in named if name in wrong},
        verified=len(to_hash),
        unknown=sum(not sha256 for sha256 in named.values()),
        surplus=tuple(sorted(found - named.keys())),
    )


def describe(directory: pathlib.Path | str, wrong: dict[str, str]) -> str:
    """A message for the user about what is wrong and what to do."""
    cure = 'copy {0} there again, or run the same prepare again, which makes {0} again from the corpus'
    if set(wrong.values()) == {'is missing'}:
        return f'{directory} lacks {_listed(list(wrong))}; ' + cure.format('it' if len(wrong) == 1 else 'them')
    lines = [f'    {name} {clause}' for name, clause in list(wrong.items())[:_NAMED]]
    lines += [f'    … and {len(wrong) - _NAMED} more'] * (len(wrong) > _NAMED)
    return f'{directory} is damaged:\n' + '\n'.join(lines) + '\n' + cure.format('these files')


def check_tokenizer(directory: pathlib.Path, manifest: Manifest) -> None:
    """Raises ConfigError unless the tokenizer is the one with which the rows were made."""
    path = directory / manifest.tokenizer
    clause = _difference(path, manifest.tokenizer_sha256) if manifest.tokenizer_sha256 else ''
    if clause:
        raise ConfigError(describe(directory, {manifest.tokenizer: clause}))


def progress_bar(what: str, num_bytes: int) -> tqdm.tqdm:
    """A progress bar in bytes that appears only if the work takes more than a few seconds."""
    return progress.bar(total=num_bytes, desc=what, unit='B', unit_scale=True, delay=3)


class Background:
    """Compares shards with their checksums in a thread of the lowest priority, while training runs.

    Every start of a run repeats this, because a file may have changed in the meantime. Several processes divide the
    shards among them, which is complete if they read the same disk; if each has its own copy, it checks only a part.
    """

    def __init__(
        self,
        files: Sequence[tuple[pathlib.Path, Shard]],
        process: int = 0,
        num_processes: int = 1,
        share_of_core: float = 0.1,
    ):
        """Starts the thread.

        Args:
          files: the shards, each with the directory in which it lies.
          process: the index of this process.
          num_processes: the number of processes of the run.
          share_of_core: the fraction of the time during which the thread works, which also limits how fast it reads.
        """
        self._files = list(files)
        self._mine = range(process, len(self._files), num_processes)
        self._several, self._share = num_processes > 1, share_of_core
        self._wrong: dict[int, str] = {}
        self._done, self._agreed, self._stopped = False, False, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether this process has finished its part of the shards."""
        return self._done

    def raise_if_damaged(self, agree: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Raises ConfigError if a shard is not the one that was prepared.

        Args:
          agree: gathers int32[1] of this process to int32[P, 1] of all processes. Several processes need it, so that
            all of them raise at the same step; all must then call this method at the same steps. Without it, several
            processes never raise.
        """
        if not self._several:
            wrong = next(iter(self._wrong), None)
        elif agree is None or self._agreed:
            return
        else:
            running, clean = -1, -2
            mine = next(iter(self._wrong), clean if self._done else running)
            states = np.asarray(agree(np.array([mine], np.int32))).ravel().tolist()
            wrong = next((state for state in states if state >= 0), None)
            self._agreed = running not in states
        if wrong is not None:
            directory, shard = self._files[wrong]
            raise ConfigError(
                f'{describe(directory, {shard.file: self._wrong.get(wrong, CHANGED)})}. This run may have trained on '
                'damaged rows since its start: delete the checkpoints written since then, and run the same command '
                'again'
            )

    def close(self) -> None:
        """Stops the thread."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        if sys.platform == 'linux':  # other systems set priorities only for whole processes
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        for number in self._mine:
            directory, shard = self._files[number]
            clause = _difference(directory / shard.file, shard.sha256, self._pause) if shard.sha256 else ''
            if self._stopped.is_set():
                return
            if clause:
                self._wrong[number] = clause
                break
        self._done = True

    def _pause(self, worked_seconds: float) -> bool:
        """Sleeps in proportion to the time worked; returns whether to continue."""
        return not self._stopped.wait(worked_seconds * (1 / self._share - 1))


def _difference(path: pathlib.Path, sha256: str, pause: Callable[[float], bool] | None = None) -> str:
    """What is wrong with a file compared with its checksum; '' if nothing is, or if `pause` returned False."""
    digest, start = hashlib.sha256(), time.perf_counter()
    try:
        with path.open('rb') as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                if pause:
                    if not pause(time.perf_counter() - start):
                        return ''
                    start = time.perf_counter()
    except FileNotFoundError:
        return 'is missing'
    except OSError as error:
        return f'cannot be read: {error.strerror or error}'
    return '' if digest.hexdigest() == sha256 else CHANGED


def _layouts(directory: pathlib.Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yields each file with what is wrong with it, as far as that shows without reading its content, or ''."""
    for name in filter(None, (manifest.tokenizer, manifest.tables)):
        path = directory / name
        yield name, '' if path.is_file() else 'is not a file' if path.exists() else 'is missing'
    for split in manifest.splits.values():
        for shard in split.shards:
            shape = shard.rows, manifest.sequence_length
            yield shard.file, shards.layout(directory / shard.file, shape, np.dtype(manifest.dtype))[1]


def _unreadable_tables(directory: pathlib.Path, manifest: Manifest) -> dict[str, str]:
    try:
        masking_tables.read(directory / manifest.tables, manifest.vocabulary.size)
    except ConfigError as error:
        return {manifest.tables: f'is not a valid file of tables: {error}'}
    return {}


def _listed(names: list[str]) -> str:
    return ', '.join(names[:_NAMED]) + f' … and {len(names) - _NAMED} more' * (len(names) > _NAMED)
