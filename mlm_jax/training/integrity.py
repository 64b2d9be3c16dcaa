"""Finds damaged files in checkpoints, by comparing them with the checksums that each checkpoint contains.

These are SHA-256 on a disk, and MD5 in a bucket, which tells that of each object in a listing: there, neither writing
checksums nor comparing them reads what a checkpoint holds, unless the bucket tells none, or another one.
"""

import concurrent.futures
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from mlm_jax.files import atomic, buckets
from mlm_jax.files.buckets import BucketPath, Stored

CHECKSUMS_FILE = 'checksums.json'
_METADATA_FILE = '_CHECKPOINT_METADATA'  # has no checksum, as Orbax writes the time into it after the checksums
_THREADS = 8  # hashlib releases the global interpreter lock
# The errors that tensorstore, JSON and the file system raise for files that are truncated, missing or changed.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, NotImplementedError)


def write_checksums(directory: pathlib.Path, kind: str = 'sha256') -> None:
    """Writes `checksums.json` into a checkpoint: for each file of its parts, path → size in bytes and checksum.

    Args:
      directory: the checkpoint.
      kind: 'md5' for a checkpoint that will lie in a bucket; of one that does, MD5 is taken where the bucket tells it.
    """
    stored = _stored(directory)
    names = sorted((name for name in stored if '/' in name), key=pathlib.PurePosixPath)
    known = {name: {'md5': stored[name].md5} for name in names if stored[name].md5}
    others = [name for name in names if name not in known]
    known |= {name: {kind: digest} for name, digest in _digests(directory, others, [kind] * len(others)).items()}
    files = {name: {'size': stored[name].size, **known[name]} for name in names}
    atomic.write_bytes(directory / CHECKSUMS_FILE, f'{json.dumps(files, indent=0)}\n'.encode())


def _stored(directory: pathlib.Path) -> dict[str, Stored]:
    """The files below a directory, by their paths from there."""
    if isinstance(directory, BucketPath):
        return directory.listing()
    paths = (path for path in directory.glob('**/*') if path.is_file())
    return {path.relative_to(directory).as_posix(): Stored(path.stat().st_size, '') for path in paths}


def _digests(directory: pathlib.Path, names: Sequence[str], kinds: Iterable[str]) -> dict[str, str]:
    """Path → checksum of files of a checkpoint, each of its kind."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(_digest, (directory / name for name in names), kinds), strict=True))


def _digest(path: pathlib.Path, kind: str) -> str:
    if kind == 'sha256':
        return atomic.sha256(path)
    with path.open('rb') as file:
        return hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def damage(directory: pathlib.Path, items: Sequence[str]) -> str | None:
    """What is damaged in a checkpoint, in words; None if nothing is.

    A checkpoint without checksums was written by an earlier version. It is read completely instead: no file may be
    missing or unreadable, and parameters must be finite. A value that changed into another finite value is not noticed.

    Args:
      directory: the directory of the checkpoint of one step.
      items: the names of the parts that are needed; the others may be damaged.
    """
    missing = [item for item in items if not (directory / item).is_dir()]
    if missing:
        return f'{", ".join(missing)} is missing' if any(directory.iterdir()) else 'its directory is empty'
    try:
        json.loads((directory / _METADATA_FILE).read_bytes())
    except (OSError, ValueError) as error:
        return f'{_METADATA_FILE} cannot be read ({error})'
    if (directory / CHECKSUMS_FILE).exists():
        return _differs(directory, items)
    return _unreadable(directory, items)


def parts(directory: pathlib.Path) -> set[str]:
    """The names of the parts of a checkpoint that its checksums list; none where these are missing or damaged."""
    try:
        return {name.partition('/')[0] for name in json.loads((directory / CHECKSUMS_FILE).read_bytes())}
    except (*_UNREADABLE, AttributeError):
        return set()


def _differs(directory: pathlib.Path, items: Sequence[str]) -> str | None:
    try:
        wanted = {
            name: (int(entry['size']), *_recorded(entry))
            for name, entry in json.loads((directory / CHECKSUMS_FILE).read_bytes()).items()
            if name.partition('/')[0] in items
        }
    except (*_UNREADABLE, AttributeError):
        return f'{CHECKSUMS_FILE} is not a file of checksums'
    stored = _stored(directory)
    for name, (size, _, _) in wanted.items():
        if name not in stored:
            return f'{name} is missing'
        if (found := stored[name].size) != size:
            return f'{name} has {found:,} bytes instead of {size:,}'
    # What a bucket tells is believed where it agrees; encrypted objects of S3 have another MD5 than their content.
    read = [name for name, (_, kind, digest) in wanted.items() if (kind, digest) != ('md5', stored[name].md5)]
    digests = _digests(directory, read, [wanted[name][1] for name in read])
    changed = [name for name, digest in digests.items() if digest != wanted[name][2]]
    return f'{changed[0]} has other content than was written' if changed else None


def _recorded(entry: dict) -> tuple[str, str]:
    """The kind of a checksum, and the checksum."""
    kind = 'md5' if 'md5' in entry else 'sha256'
    return kind, str(entry[kind])


def _unreadable(directory: pathlib.Path, items: Sequence[str]) -> str | None:
    for item in items:
        try:
            _read_through(buckets.local(directory / item))
        except _UNREADABLE as error:
            return f'{item} cannot be read ({(str(error).splitlines() or [type(error).__name__])[0][:200]})'
    return None


def _read_through(item: pathlib.Path) -> None:
    """Reads one part of a checkpoint, a JSON object or arrays; raises an error of `_UNREADABLE` if it is damaged."""
    if (item / 'metadata').exists():
        if not isinstance(json.loads((item / 'metadata').read_bytes()), dict):
            raise ValueError('it holds no JSON object')
        return
    import tensorstore  # Orbax writes arrays with it

    json.loads((item / '_METADATA').read_bytes())
    store = {'driver': 'ocdbt', 'base': f'file://{item.absolute()}/'}
    names = [key.decode() for key in tensorstore.KvStore.open(store).result().list().result()]
    arrays = [name.removesuffix('.zarray') for name in names if name.endswith('/.zarray')]
    if not arrays:
        raise ValueError('it holds no arrays')
    for name in arrays:
        spec = {'driver': 'zarr', 'kvstore': {**store, 'path': name}}
        values = np.asarray(tensorstore.open(spec).result().read().result())
        if item.name == 'params' and not np.isfinite(values.astype(np.float32)).all():
            raise ValueError(f'{name.rstrip("/")} is not finite')
