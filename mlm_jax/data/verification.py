"""Whether a prepared directory still holds what its manifest says.

Sizes, shapes and dtypes are looked at in no time; the content takes as long as reading it (SHA-256, about 1 GB/s).
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import tqdm

from mlm_jax.data import shards, tables
from mlm_jax.data.manifest import CHANGED, Manifest
from mlm_jax.files import progress
from mlm_jax.files.errors import ConfigError

_CHUNK_BYTES = 1 << 20
_NAMED = 20  # so many damaged files are named at most


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was looked at, and what is wrong.

    Attributes:
      wrong: file → a clause about it ('is missing'), in the order of the manifest.
      verified: how many files have been compared with their hashes.
      unknown: how many could not be, since the manifest has no hash of them.
      surplus: shards that the manifest does not name; nobody reads them.
    """

    wrong: dict[str, str]
    verified: int
    unknown: int
    surplus: tuple[str, ...]


def hashes(manifest: Manifest) -> dict[str, str]:
    """Every file of a prepared directory besides the manifest → its SHA-256; '' where that is unknown."""
    known = {manifest.tokenizer: manifest.tokenizer_sha256}
    if manifest.tables:
        known[manifest.tables] = manifest.tables_sha256
    return known | {shard.file: shard.sha256 for split in manifest.splits.values() for shard in split.shards}


def examine(directory: pathlib.Path, manifest: Manifest, content: bool) -> Findings:
    """Compares the files of a directory with its manifest.

    Args:
      directory: that `prepare` wrote.
      manifest: of it.
      content: whether hashes are compared too; a bar shows how far that is, where it takes more than seconds.
    """
    wrong = {name: clause for name, clause in _layouts(directory, manifest) if clause}
    known = {name: sha256 for name, sha256 in hashes(manifest).items() if name not in wrong}
    to_hash = {name: sha256 for name, sha256 in known.items() if sha256} if content else {}
    sizes = {name: (directory / name).stat().st_size for name in to_hash}
    with progress_bar('verifying', sum(sizes.values())) as bar:
        for name, sha256 in to_hash.items():
            if clause := _difference(directory / name, sha256):
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
    """Findings in a user's words, with the cure."""
    cure = 'copy {0} there again, or run the same prepare again, which makes {0} anew from the corpus'
    if set(wrong.values()) == {'is missing'}:
        return f'{directory} lacks {_listed(list(wrong))}; ' + cure.format('it' if len(wrong) == 1 else 'them')
    lines = [f'    {name} {clause}' for name, clause in list(wrong.items())[:_NAMED]]
    lines += [f'    … and {len(wrong) - _NAMED} more'] * (len(wrong) > _NAMED)
    return f'{directory} is damaged:\n' + '\n'.join(lines) + '\n' + cure.format('these files')


def check_tokenizer(directory: pathlib.Path, manifest: Manifest) -> None:
    """Raises ConfigError unless the tokenizer is the one that the rows were made with."""
    path = directory / manifest.tokenizer
    clause = _difference(path, manifest.tokenizer_sha256) if manifest.tokenizer_sha256 else ''
    if clause:
        raise ConfigError(describe(directory, {manifest.tokenizer: clause}))


def progress_bar(what: str, num_bytes: int) -> tqdm.tqdm:
    """A bar for work on bytes, which appears where the work takes more than seconds."""
    return progress.bar(total=num_bytes, desc=what, unit='B', unit_scale=True, delay=3)


class Background:
    """Compares the hashes of shards in a thread of the lowest priority, while training goes on.

    Every start of a run does it anew: a file may have changed since. Of several processes, each takes its share of the
    shards, as if they read the same disk; where each has a copy of its own, that is a sample of the copies.
    """

    def __init__(
        self,
        directory: pathlib.Path | str,
        manifest: Manifest,
        process: int = 0,
        num_processes: int = 1,
        share_of_core: float = 0.1,
    ):
        """Starts at once.

        Args:
          directory: that `prepare` wrote.
          manifest: of it.
          process: the number of this process.
          num_processes: of the run.
          share_of_core: how much of the time the thread works; it bounds what it reads, too.
        """
        self._directory = pathlib.Path(directory).expanduser()
        self._shards = [shard for split in manifest.splits.values() for shard in split.shards]
        self._mine = range(process, len(self._shards), num_processes)
        self._several, self._share = num_processes > 1, share_of_core
        self._wrong: dict[int, str] = {}
        self._done, self._agreed, self._stopped = False, False, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the share of this process has been looked at."""
        return self._done

    def raise_if_damaged(self, agree: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Raises ConfigError where a shard is not the one that was prepared.

        Args:
          agree: int32[1] of this process → int32[P, 1] of all, for several processes, which must end at the same step:
            all call it then, at the same steps. Without it, several processes say nothing.
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
            name = self._shards[wrong].file
            raise ConfigError(
                f'{describe(self._directory, {name: self._wrong.get(wrong, CHANGED)})}. Rows of it may have been '
                'trained on since this start: delete the checkpoints written since, and run the same command again'
            )

    def close(self) -> None:
        """Stops the thread."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        if sys.platform == 'linux':  # elsewhere, priorities are those of whole processes
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        for number in self._mine:
            shard = self._shards[number]
            clause = _difference(self._directory / shard.file, shard.sha256, self._pause) if shard.sha256 else ''
            if self._stopped.is_set():
                return
            if clause:
                self._wrong[number] = clause
                break
        self._done = True

    def _pause(self, worked_seconds: float) -> bool:
        """Rests in proportion; whether to go on."""
        return not self._stopped.wait(worked_seconds * (1 / self._share - 1))


def _difference(path: pathlib.Path, sha256: str, pause: Callable[[float], bool] | None = None) -> str:
    """A clause about a file whose content does not have that hash; '' where it has. Ends early where `pause` says."""
    digest, start = hashlib.sha256(), time.perf_counter()
    try:
        with open(path, 'rb') as file:
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
    """Each file with a clause about what is wrong at first sight, or ''."""
    for name in filter(None, (manifest.tokenizer, manifest.tables)):
        path = directory / name
        yield name, '' if path.is_file() else 'is no file' if path.exists() else 'is missing'
    for split in manifest.splits.values():
        for shard in split.shards:
            shape = shard.rows, manifest.sequence_length
            yield shard.file, shards.layout(directory / shard.file, shape, np.dtype(manifest.dtype))[1]


def _unreadable_tables(directory: pathlib.Path, manifest: Manifest) -> dict[str, str]:
    try:
        tables.read(directory / manifest.tables, manifest.vocabulary.size)
    except ConfigError as error:
        return {manifest.tables: f'is no file of tables: {error}'}
    return {}


def _listed(names: list[str]) -> str:
    return ', '.join(names[:_NAMED]) + f' … and {len(names) - _NAMED} more' * (len(names) > _NAMED)
