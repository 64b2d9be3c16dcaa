"""Finds damaged files in checkpoints, by comparing them with the SHA-256 checksums that each checkpoint contains."""

import concurrent.futures
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from mlm_jax.files import atomic

CHECKSUMS_FILE = 'checksums.json'
_METADATA_FILE = '_CHECKPOINT_METADATA'  # has no checksum, as Orbax writes the time into it after the checksums
_THREADS = 8  # hashlib releases the global interpreter lock
# The errors that tensorstore, JSON and the file system raise for files that are truncated, missing or changed.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, NotImplementedError)


def write_checksums(directory: pathlib.Path) -> None:
    """Writes `checksums.json` into a checkpoint: for each file of its parts, path → size in bytes and SHA-256."""
    paths = sorted(path for path in directory.glob('*/**/*') if path.is_file())
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(atomic.sha256, paths)
    files = {
        path.relative_to(directory).as_posix(): {'size': path.stat().st_size, 'sha256': digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    atomic.write_bytes(directory / CHECKSUMS_FILE, f'{json.dumps(files, indent=0)}\n'.encode())


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
            name: (int(entry['size']), str(entry['sha256']))
            for name, entry in json.loads((directory / CHECKSUMS_FILE).read_bytes()).items()
            if name.partition('/')[0] in items
        }
    except (*_UNREADABLE, AttributeError):
        return f'{CHECKSUMS_FILE} is not a file of checksums'
    for name, (size, _) in wanted.items():
        if not (directory / name).is_file():
            return f'{name} is missing'
        if (found := (directory / name).stat().st_size) != size:
            return f'{name} has {found:,} bytes instead of {size:,}'
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(lambda name: atomic.sha256(directory / name), wanted)
        changed = [name for name, digest in zip(wanted, digests, strict=True) if digest != wanted[name][1]]
    return f'{changed[0]} has other content than was written' if changed else None


def _unreadable(directory: pathlib.Path, items: Sequence[str]) -> str | None:
    for item in items:
        try:
            _read_through(directory / item)
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
