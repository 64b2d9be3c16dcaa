"""Identifies the content of the files of a corpus, so that a file that has changed is found.

The size of a file would not change when a word is replaced, and its time stamp would change when it is copied, so
checksums identify a file: one SHA-256 for each part (`slices.py`), all of which together cover the file. The job that
reads a part also computes its checksum, so the work is shared by all processes and machines, and notes the inode and
time stamps of the file, or in a bucket its generation or ETag. When a preparation resumes, files of which these are
still the same are not read again; parts of other files are, if they have been read before. For a finished directory,
all files are read again.

Of a file of the hub, of which the commit is known, the hash by which the hub knows it is enough: git's, of the content
or of its SHA-256.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlm_jax.data import corpora, hub_sets, slices
from mlm_jax.files import atomic, buckets, progress
from mlm_jax.files.errors import ConfigError, unreadable


def describe(spec: str, files: Sequence[pathlib.Path]) -> dict[str, Any]:
    """The files of a corpus, if it has any, each with its size as `bytes`.

    Args:
      spec: the corpus.
      files: those that it names (`corpora.files_of`); the files of a data set of the hub are found here.

    Raises:
      ConfigError: if `spec` is not valid, or a file cannot be read.
    """
    kind, rest = corpora.parse(spec)
    try:
        if kind == 'hf':
            files = [file for some in hub_sets.open_splits(rest).values() for file in some]
        return {str(file): {'bytes': buckets.size(file)} for file in files}
    except OSError as error:
        raise unreadable(error.filename, error) from error


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Messages about files that appeared, disappeared, or have another size than then."""
    found = []
    for file in sorted(then.keys() | now.keys()):
        sizes = [_bytes(state.get(file, 'no')) for state in (then, now)]
        if sizes[0] != sizes[1]:
            found.append(f'{file}: {sizes[0]} bytes then, {sizes[1]} now')
    return found


def content_changes(then: Mapping[str, Any]) -> list[str]:
    """Messages about files whose content differs; reads all files on all cores, each of which has the size as then.

    Args:
      then: file → its state in a manifest: `bytes`, and `sha256` or, for a file of several parts, `parts`, the SHA-256
        of each. Earlier versions stored only the size; there is nothing to compare then.
    """
    work = [(file, part) for file, state in then.items() for part in _parts(file, state)]
    found: dict[str, str] = {}
    with (
        progress.bar(
            total=sum(part.num_bytes for _, (part, _) in work), desc='checking', unit='B', unit_scale=True, delay=5
        ) as bar,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for (file, (part, sha256)), now in zip(work, pool.map(lambda item: _sha256(item[1][0]), work)):
            if now != sha256:
                found[file] = f'{file}: the same size as then, {part.bytes} bytes, but different content'
            bar.update(part.num_bytes)
    return list(found.values())


def observe(part: slices.Part, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The state of a part of a file before it is read: its SHA-256, and a stamp that changes with the file.

    Args:
      part: the part; for a part of a TFDS data set, the state is empty.
      known: an earlier state. The file is not read if its stamp is still the same.

    Raises:
      ConfigError: if the content differs from the earlier state, or the file cannot be read.
    """
    if not part.path:
        return {}
    stamp = _stamp(part)
    if known and known['stamp'] == stamp:
        return dict(known)
    state = {'stamp': stamp, 'sha256': _sha256(part)}
    if _stamp(part) != stamp or (known and known['sha256'] != state['sha256']):
        raise _changed(part)
    return state


def check_unchanged(part: slices.Part, state: Mapping[str, Any]) -> None:
    """Raises ConfigError if a file was written to since `observe`, while it was read."""
    if part.path and _stamp(part) != state['stamp']:
        raise _changed(part)


def with_checksums(files: Mapping[str, Any], checksums: Mapping[str, list[str]]) -> dict[str, Any]:
    """The files of `describe` with the checksums of their parts, as a manifest stores them."""
    return {
        file: state | ({'sha256': checksums[file][0]} if len(checksums[file]) == 1 else {'parts': checksums[file]})
        for file, state in files.items()
    }


def _bytes(state: Any) -> Any:
    return state.get('bytes', 'no') if isinstance(state, Mapping) else state  # earlier versions stored only the size


def _parts(file: str, state: Any) -> Iterator[tuple[slices.Part, str]]:
    if isinstance(state, Mapping):
        known = state.get('parts') or ([state['sha256']] if 'sha256' in state else [])
        for index, sha256 in enumerate(known):
            yield slices.Part(file, index, len(known), state['bytes']), sha256


def _sha256(part: slices.Part) -> str:
    """The SHA-256 of a part; of a file of the hub its hash there, since reading it twice would cost much."""
    path = buckets.path(part.path)
    try:
        if isinstance(path, buckets.BucketPath) and path.is_immutable:
            return f'blob {path.identity()[1]}'
        return atomic.sha256(path, *part.range)
    except OSError as error:
        raise unreadable(part.path, error) from error


def _stamp(part: slices.Part) -> list[Any]:
    path = buckets.path(part.path)
    try:
        if isinstance(path, buckets.BucketPath):
            size, identity = path.identity()
            stamp: list[Any] = [identity]
        else:
            status = os.stat(path)
            size, stamp = status.st_size, [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    except OSError as error:
        raise unreadable(part.path, error) from error
    if size != part.bytes:
        raise _changed(part)
    return stamp


def _changed(part: slices.Part) -> ConfigError:
    return ConfigError(
        f'{part.path} has changed since this preparation first read it. Restore it, or delete the unfinished directory '
        'and run this again'
    )
