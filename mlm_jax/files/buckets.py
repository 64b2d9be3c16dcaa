"""Objects in buckets (gs://, s3://) and files of the Hugging Face Hub (hf://) as paths: what reads or writes a file
reads or writes an object in the same way.

`path` makes a path of what a user has written. A path of a bucket has the methods of `pathlib.Path` that this package
uses, and goes through fsspec, whose packages for Google Cloud Storage and S3 need no TensorFlow. Two others lie on
fsspec, too. etils.epath was not taken because it turns to TensorFlow wherever that is installed, reads no ranges of
bytes, and refuses `**` in globs; nor universal_pathlib, because its paths are no `pathlib.Path`, read blocks of 5 MB in
place of ranges, and raise what the packages raise, so that nearly all of this file would still be needed.

Credentials and other endpoints come from where the packages look for them: gcsfs takes STORAGE_EMULATOR_HOST, s3fs
AWS_ENDPOINT_URL.

What is different in a bucket:

* An object appears when it is written whole, or not at all. `atomic.opened` collects it on a disk until then.
* There are no directories: one exists if there is an object below it, and `mkdir` does nothing.
* Renaming is copying, and then deleting: it can end halfway.
* There are no locks (but `lease.py`), no appending (but `mirror.py`), and no memory maps. What needs one asks
  `is_bucket`.
* The operating system takes no such path, not even for a directory named `gs:`: `os.fspath` raises TypeError.

Files of the hub are read only, and by their commits: hf://datasets/ORGANIZATION/NAME@COMMIT/FILE (`hub.py`).
"""

import base64
import concurrent.futures
import contextlib
import datetime
import errno
import fnmatch
import functools
import io
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from mlm_jax.files import scratch
from mlm_jax.files.errors import ConfigError

# Scheme → the package that reads it, and the extra of this package that installs that.
SCHEMES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3'), 'hf': ('huggingface_hub', 'hub')}
READ_ONLY = ('hf',)  # whose content never changes; users name it in another way (`data/hub_sets.py`)
# No listing is remembered, because other processes write, too. What arrives in the bucket is compared with what was
# sent, which S3 does by itself.
_OPTIONS: dict[str, dict[str, Any]] = {
    'gs': {'use_listings_cache': False, 'consistency': 'md5'},
    's3': {'use_listings_cache': False},
    'hf': {},
}
# With these, a range is requested as it is, and not with the megabytes behind it.
_OPTIONS_OF_RANGES: dict[str, dict[str, Any]] = {'hf': {'cache_type': 'none'}}
# Otherwise gcsfs asks in each operation for the layout of the bucket, which credentials for objects alone may not read.
# It is of use for zonal buckets only.
_NO_QUESTIONS = ('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
_URL = re.compile(rf'({"|".join(SCHEMES)})://[^/]')
_FIRST_READ, _LARGEST_READ = 1 << 16, 1 << 24  # bytes of a request while a file is read from its start on
_ESCAPED = str.maketrans({character: f'[{character}]' for character in '*?['})
# What tells one content of an object from another: its generation (gs), its ETag (s3), its hash (hf), or when it was
# written.
_IDENTITIES = ('generation', 'blob_id', 'ETag', 'etag', 'LastModified', 'mtime', 'created')
_THREADS = 8  # requests, or files that are copied, at the same time
_Thing = TypeVar('_Thing')
_Answer = TypeVar('_Answer')


class ShortenedError(OSError):
    """An object holds less than was asked for: it is another than the one whose size was found."""


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return isinstance(path, BucketPath) or (isinstance(path, str) and _URL.match(path) is not None)


def path(text: str | os.PathLike) -> pathlib.Path:
    """The path that a text names, in a bucket or on a disk; in place of `pathlib.Path` for what users have written."""
    return BucketPath(text) if is_bucket(text) else pathlib.Path(text)


def size(path: pathlib.Path) -> int:
    """The size of a file in bytes; of an object that a listing has found the size from there, without a request."""
    listed = path.listed_size if isinstance(path, BucketPath) else None
    return path.stat().st_size if listed is None else listed


def ask_each(ask: Callable[[pathlib.Path], _Answer], paths: Sequence[pathlib.Path]) -> list[_Answer]:
    """What `ask` returns for each path; several are asked at the same time if some lie in a bucket, which is far."""
    return _at_once(ask, paths) if any(map(is_bucket, paths)) else list(map(ask, paths))


def remove_tree(directory: pathlib.Path, ignore_errors: bool = False) -> None:
    """Deletes a directory and all that is in it; `shutil.rmtree` explains `ignore_errors`."""
    if isinstance(directory, BucketPath):
        directory.remove_all()
    else:
        shutil.rmtree(directory, ignore_errors)


def download(source: 'BucketPath', target: pathlib.Path, names: Iterable[str]) -> None:
    """Copies objects, by their names below `source`, to a directory of a disk, several at the same time."""
    names = list(names)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    _at_once(lambda name: (source / name).get(target / name), names)


def upload(source: pathlib.Path, target: 'BucketPath', last: str) -> None:
    """Copies all files below a directory of a disk, several at the same time; `last` when the others are there."""
    names = [path.relative_to(source).as_posix() for path in source.rglob('*') if path.is_file()]
    _at_once(lambda name: (target / name).put(source / name), [name for name in names if name != last])
    (target / last).put(source / last)


def settle_for_others() -> None:
    """Lets other packages that use Google Cloud Storage through fsspec, as Orbax does, use it as this file does."""
    import fsspec

    os.environ.setdefault(*_NO_QUESTIONS)
    fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)


def _at_once(do: Callable[[_Thing], _Answer], things: Iterable[_Thing]) -> list[_Answer]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(do, things))


def local(directory: pathlib.Path) -> pathlib.Path:
    """A copy on the disk of a directory in a bucket, made once, and deleted when this process ends; others themselves.

    For what reads files by their numbers or maps them into memory, as safetensors does.
    """
    return _local_copy(directory) if isinstance(directory, BucketPath) else directory


@functools.cache
def _local_copy(directory: 'BucketPath') -> pathlib.Path:
    target = scratch.new() / directory.name
    target.mkdir()
    download(directory, target, directory.listing())
    return target


class Stored(NamedTuple):
    """What a listing tells of an object: its size in bytes, and its MD5 in hexadecimal, '' where that is not known."""

    size: int
    md5: str


class BucketPath(pathlib.PosixPath):
    """A path such as gs://BUCKET/DIRECTORY/FILE.

    Methods raise OSError as those of `pathlib.Path` do, whatever fsspec and its packages raise; and ConfigError if the
    package that reads the bucket is not installed.

    Attributes:
      listed_size: the size in bytes if a listing has found this path, which told it; the object may have been written
        again since then. Otherwise None, as for paths that are made of this one, and for its copies in other processes.
    """

    listed_size: int | None = None

    def __str__(self) -> str:
        return super().__str__().replace(':/', '://', 1)  # pathlib makes one slash of two

    def __fspath__(self) -> str:
        raise TypeError(f'{self} lies in a bucket, which the operating system does not know')

    @property
    def scheme(self) -> str:
        """One of `SCHEMES`."""
        return self.parts[0].removesuffix(':')

    @property
    def _key(self) -> str:
        return '/'.join(self.parts[1:])

    @contextlib.contextmanager
    def _storage(self) -> Iterator[Any]:
        """The file system of fsspec; all errors within the block become OSError."""
        package, extra = SCHEMES[self.scheme]
        try:
            import fsspec

            os.environ.setdefault(*_NO_QUESTIONS)
            storage = fsspec.filesystem(self.scheme, **_OPTIONS[self.scheme])
        except ImportError:
            raise ConfigError(f"{self} needs the package {package}: pip install 'mlm_jax[{extra}]'") from None
        except Exception as error:  # such as missing credentials, for which each package has errors of its own
            raise OSError(errno.EACCES, reason(error), str(self)) from error
        try:
            yield storage
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error
        except OSError as error:
            where = error.filename or str(self)
            raise OSError(error.errno or errno.EIO, error.strerror or reason(error), where) from error
        except Exception as error:
            raise OSError(errno.EIO, reason(error), str(self)) from error

    @property
    def is_immutable(self) -> bool:
        """Whether its content cannot change, so that `identity` is a checksum of it."""
        return self.scheme in READ_ONLY

    def _named(self, name: str, info: Mapping[str, Any] | None = None) -> 'BucketPath':
        named = BucketPath(f'{self.parts[0]}//{name.lstrip("/")}')
        named.listed_size = info['size'] if info else None
        return named

    def _info(self) -> dict[str, Any]:
        with self._storage() as storage:
            return storage.info(self._key)

    # ---- What there is -----------------------------------------------------------------------------------------------

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The type, the size, and when it was written; everything else is 0. `identity` tells contents apart."""
        info = self._info()
        kind = stat.S_IFDIR if info['type'] == 'directory' else stat.S_IFREG
        times = (info[key] for key in ('mtime', 'LastModified', 'created') if key in info)
        written = next((time.timestamp() for time in times if isinstance(time, datetime.datetime)), 0)
        return os.stat_result((kind, 0, 0, 0, 0, 0, info['size'] or 0, 0, written, 0))

    def identity(self) -> tuple[int, str]:
        """The size of an object, and what changes whenever it is written."""
        info = self._info()
        return info['size'], next((str(info[key]) for key in _IDENTITIES if key in info), '')

    def exists(self, *args: Any, **kwargs: Any) -> bool:
        """Whether there is an object of that name, or one below it."""
        try:
            self._info()
        except FileNotFoundError:
            return False
        return True

    def _is(self, kind: str) -> bool:
        try:
            return self._info()['type'] == kind
        except FileNotFoundError:
            return False

    def is_file(self, *args: Any, **kwargs: Any) -> bool:
        """Whether there is an object of that name."""
        return self._is('file')

    def found(self) -> 'BucketPath | None':
        """This path with the size of its object as `listed_size`; None if there is no object of that name."""
        try:
            info = self._info()
        except FileNotFoundError:
            return None
        return self._named(self._key, info) if info['type'] == 'file' else None

    def is_dir(self, *args: Any, **kwargs: Any) -> bool:
        """Whether there is an object below that name."""
        return self._is('directory')

    def is_symlink(self) -> bool:
        """False: there are no links in a bucket."""
        return False

    def is_absolute(self) -> bool:
        """True."""
        return True

    def expanduser(self) -> 'BucketPath':
        """The path itself, and so are `absolute` and `resolve`."""
        return self

    def absolute(self) -> 'BucketPath':
        """The path itself."""
        return self

    def resolve(self, strict: bool = False) -> 'BucketPath':
        """The path itself."""
        return self

    def iterdir(self) -> Generator['BucketPath', None, None]:
        """What is in a directory; nothing if there is no such directory."""
        try:
            with self._storage() as storage:
                names = storage.ls(self._key, detail=False)
        except FileNotFoundError:
            return
        entries = map(self._named, names)
        yield from (entry for entry in entries if entry != self)  # an empty object may stand for the directory

    def glob(self, pattern: str, **kwargs: Any) -> Iterator['BucketPath']:  # type: ignore[override]
        """The objects below the directory whose names match a pattern; no directories."""
        return self._matching(f'{self._key.translate(_ESCAPED)}/{pattern}')

    def rglob(self, pattern: str, **kwargs: Any) -> Iterator['BucketPath']:  # type: ignore[override]
        """As `glob`, at any depth."""
        return self.glob(f'**/{pattern}')

    def matches(self) -> Iterator['BucketPath']:
        """The objects whose names match this path, read as a glob, each with its size as `listed_size`.

        As on a disk, parts of names that begin with a dot match only those of the glob that do so, too; and if nothing
        matches, brackets may belong to names.
        """
        patterns = dict.fromkeys((self._key, self._key.replace('[', '[[]')))
        found = ([path for path in self._matching(key) if not self._hides(path)] for key in patterns)
        yield from next(filter(None, found), [])

    def _hides(self, found: 'BucketPath') -> bool:
        dotted = [part for part in self.parts if part.startswith('.')]
        hidden = (part for part in found.parts if part.startswith('.'))
        return not all(part in dotted or any(fnmatch.fnmatchcase(part, glob) for glob in dotted) for part in hidden)

    def _matching(self, pattern: str) -> Iterator['BucketPath']:
        try:
            with self._storage() as storage:
                found = storage.glob(pattern, detail=True)
        except FileNotFoundError:  # as the hub says of a directory that there is not
            return
        yield from (self._named(name, info) for name, info in found.items() if info['type'] == 'file')

    def listing(self) -> dict[str, Stored]:
        """The objects below a directory, by their names from there; a request for each thousand of them."""
        with self._storage() as storage:
            found = storage.find(self._key, detail=True)
        below = f'{self._key}/'
        return {
            name.removeprefix(below): Stored(info['size'], _md5(info))
            for name, info in found.items()
            if info['type'] == 'file' and name.startswith(below) and name != below
        }

    # ---- Reading -----------------------------------------------------------------------------------------------------

    def open(  # type: ignore[override]
        self,
        mode: str = 'r',
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Opens an object to read it; with `buffering=0`, each read is one request for so many bytes."""
        if mode not in ('r', 'rb'):
            raise io.UnsupportedOperation(f'{self} cannot be opened as {mode!r}: an object is written whole')
        raw = _Object(self, ahead=buffering != 0)
        if not buffering:
            return raw
        file = io.BufferedReader(raw, max(buffering, _FIRST_READ))
        return file if mode == 'rb' else io.TextIOWrapper(file, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        """The content of an object."""
        with self._storage() as storage:
            return storage.cat_file(self._key)

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes `start` … `stop` − 1 of an object, which has so many."""
        return self.read_ranges([(start, stop)])[0]

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several ranges as `read_range`, requested at the same time."""
        with self._storage() as storage:
            if len(ranges) == 1:
                options = _OPTIONS_OF_RANGES.get(self.scheme, {})
                found = [storage.cat_file(self._key, start=ranges[0][0], end=ranges[0][1], **options)]
            else:
                starts, stops = zip(*ranges)
                found = storage.cat_ranges([self._key] * len(ranges), list(starts), list(stops), on_error='raise')
        if any(len(data) != stop - start for data, (start, stop) in zip(found, ranges)):
            raise ShortenedError(errno.EIO, 'it has become shorter while it was read', str(self))
        return found

    def get(self, target: pathlib.Path) -> None:
        """Copies an object to a file of a disk, piece by piece."""
        with self._storage() as storage:
            storage.get_file(self._key, str(target))

    # ---- Writing -----------------------------------------------------------------------------------------------------

    def write_bytes(self, data: Any) -> int:
        """Writes an object whole, in place of another of that name."""
        with self._storage() as storage:
            storage.pipe_file(self._key, bytes(data))
        return len(data)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        """As `write_bytes`, in UTF-8 by default."""
        return self.write_bytes(data.encode(encoding or 'utf-8', errors or 'strict'))

    def create(self, data: bytes) -> None:
        """Writes an object that there is not yet; of several processes that do so at once, one succeeds.

        Raises:
          OSError: if there is one.
        """
        with self._storage() as storage:
            storage.pipe_file(self._key, data, mode='create')

    def put(self, source: pathlib.Path) -> None:
        """Writes an object with the content of a file of a disk, piece by piece."""
        with self._storage() as storage:
            storage.put_file(str(source), self._key)

    def rename(self, target: pathlib.Path) -> 'BucketPath':  # type: ignore[override]
        """Moves a directory to another place in the bucket, where nothing is: copies all objects, then deletes them."""
        assert isinstance(target, BucketPath)
        with self._storage() as storage:
            _at_once(lambda name: storage.cp_file((self / name)._key, (target / name)._key), list(self.listing()))
        self.remove_all()
        return target

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a directory exists when an object is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes an object."""
        if self.is_file():
            with self._storage() as storage:
                storage.rm_file(self._key)
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    def remove_all(self) -> None:
        """Deletes all objects below a directory, if there are any."""
        if self.exists():
            with self._storage() as storage:
                storage.rm(self._key, recursive=True)


class _Object(io.RawIOBase):
    """An object as a file; while it is read from one place on, requests become larger, up to `_LARGEST_READ`."""

    def __init__(self, path: BucketPath, ahead: bool):
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self._path, self._size, self._at = path, info.st_size, 0
        self._ahead = self._first = _FIRST_READ if ahead else 0
        self._held, self._held_at = memoryview(b''), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted, done = max(0, min(len(buffer), self._size - self._at)), 0
        while done < wanted:
            if not 0 <= self._at - self._held_at < len(self._held):
                self._fetch(wanted - done)
            start = self._at - self._held_at
            found = self._held[start : start + wanted - done]
            buffer[done : done + len(found)] = found
            done, self._at = done + len(found), self._at + len(found)
        return done

    def _fetch(self, wanted: int) -> None:
        """Requests the bytes from the current place on: at least `wanted` of them."""
        follows = self._held_at + len(self._held) == self._at
        self._ahead = min(2 * self._ahead, _LARGEST_READ) if follows and self._held else self._first
        stop = min(self._size, self._at + max(wanted, self._ahead))
        self._held, self._held_at = memoryview(self._path.read_range(self._at, stop)), self._at


def _md5(info: Mapping[str, Any]) -> str:
    """As Google Cloud Storage tells it; or an ETag of S3, which is none of objects written in parts, or encrypted."""
    if 'md5Hash' in info:
        return base64.b64decode(info['md5Hash']).hex()
    etag = str(info.get('ETag', '')).strip('"')
    return etag if re.fullmatch('[0-9a-f]{32}', etag) else ''


def reason(error: Exception) -> str:
    """An error of another package in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}' if str(error) else type(error).__name__
