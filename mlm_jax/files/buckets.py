"""Objects in buckets (gs://, s3://) and files of the Hugging Face Hub (hf://) as paths: what reads or writes a file
reads or writes an object in the same way.

`path` makes a path of what a user has written. A path of a bucket has the methods of `pathlib.Path` that this package
uses, and goes through fsspec, whose packages for Google Cloud Storage and S3 need no TensorFlow; etils.epath, which
lies on fsspec too, was not taken because it turns to TensorFlow wherever that is installed, reads no ranges of bytes,
and refuses `**` in globs. Credentials and other endpoints come from where these packages look for them: gcsfs takes
STORAGE_EMULATOR_HOST, s3fs AWS_ENDPOINT_URL.

What is different in a bucket:

* An object appears when it is written whole, or not at all. It is collected in memory until then.
* There are no directories: one exists if there is an object below it, and `mkdir` does nothing.
* There are no locks, no appending, no renaming and no memory maps. What needs one asks `is_bucket` before.
* The operating system takes no such path, not even for a directory named `gs:`: `os.fspath` raises TypeError.

Files of the hub are read only, and by their commits: hf://datasets/ORGANIZATION/NAME@COMMIT/FILE (`hub.py`).
"""

import contextlib
import errno
import io
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Generator, Iterator, Sequence
from typing import Any

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
_URL = re.compile(rf'({"|".join(SCHEMES)})://[^/]')
_FIRST_READ, _LARGEST_READ = 1 << 16, 1 << 24  # bytes of a request while a file is read from its start on
_ESCAPED = str.maketrans({character: f'[{character}]' for character in '*?['})
# What tells one content of an object from another: its generation (gs), its ETag (s3), its hash (hf), or when it was
# written.
_IDENTITIES = ('generation', 'blob_id', 'ETag', 'etag', 'LastModified', 'mtime', 'created')


def is_bucket(path: str | pathlib.Path) -> bool:
    """Whether a path lies in a bucket."""
    return isinstance(path, BucketPath) or (isinstance(path, str) and _URL.match(path) is not None)


def path(text: str | pathlib.Path) -> pathlib.Path:
    """The path that a text names, in a bucket or on a disk; in place of `pathlib.Path` for what users have written."""
    return BucketPath(text) if is_bucket(text) else pathlib.Path(text)


def remove_tree(directory: pathlib.Path, ignore_errors: bool = False) -> None:
    """Deletes a directory and all that is in it; `shutil.rmtree` explains `ignore_errors`."""
    if isinstance(directory, BucketPath):
        directory.remove_all()
    else:
        shutil.rmtree(directory, ignore_errors)


def copy_here(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file, or an object of a bucket, to a disk."""
    if isinstance(source, BucketPath):
        target.write_bytes(source.read_bytes())
    else:
        shutil.copy(source, target)


class BucketPath(pathlib.PosixPath):
    """A path such as gs://BUCKET/DIRECTORY/FILE.

    Methods raise OSError as those of `pathlib.Path` do, whatever fsspec and its packages raise; and ConfigError if the
    package that reads the bucket is not installed.
    """

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

            # Otherwise gcsfs asks in each operation for the layout of the bucket, which credentials for objects alone
            # may not read. It is of use for zonal buckets only.
            os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
            storage = fsspec.filesystem(self.scheme, **_OPTIONS[self.scheme])
        except ImportError:
            raise ConfigError(f"{self} needs the package {package}: pip install 'mlm_jax[{extra}]'") from None
        except Exception as error:  # such as missing credentials, for which each package has errors of its own
            raise OSError(errno.EACCES, _reason(error), str(self)) from error
        try:
            yield storage
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error
        except OSError as error:
            raise OSError(error.errno or errno.EIO, error.strerror or _reason(error), str(self)) from error
        except Exception as error:
            raise OSError(errno.EIO, _reason(error), str(self)) from error

    @property
    def is_immutable(self) -> bool:
        """Whether its content cannot change, so that `identity` is a checksum of it."""
        return self.scheme in READ_ONLY

    def _named(self, name: str) -> 'BucketPath':
        return BucketPath(f'{self.parts[0]}//{name.lstrip("/")}')

    def _info(self) -> dict[str, Any]:
        with self._storage() as storage:
            return storage.info(self._key)

    # ---- What there is -----------------------------------------------------------------------------------------------

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The type and the size; everything else is 0. `identity` tells contents apart."""
        info = self._info()
        kind = stat.S_IFDIR if info['type'] == 'directory' else stat.S_IFREG
        return os.stat_result((kind, 0, 0, 0, 0, 0, info['size'] or 0, 0, 0, 0))

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
        found = map(self._named, names)
        yield from (entry for entry in found if entry != self)  # an empty object may stand for the directory

    def glob(self, pattern: str, **kwargs: Any) -> Iterator['BucketPath']:  # type: ignore[override]
        """The objects below the directory whose names match a pattern; no directories."""
        return self._matching(f'{self._key.translate(_ESCAPED)}/{pattern}')

    def rglob(self, pattern: str, **kwargs: Any) -> Iterator['BucketPath']:  # type: ignore[override]
        """As `glob`, at any depth."""
        return self.glob(f'**/{pattern}')

    def matches(self) -> Iterator['BucketPath']:
        """The objects whose names match this path, read as a glob."""
        return self._matching(self._key)

    def _matching(self, pattern: str) -> Iterator['BucketPath']:
        try:
            with self._storage() as storage:
                found = storage.glob(pattern, detail=True)
        except FileNotFoundError:  # as the hub says of a directory that there is not
            return
        yield from (self._named(name) for name, info in found.items() if info['type'] == 'file')

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
            raise OSError(errno.EIO, 'it has become shorter while it was read', str(self))
        return found

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


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}' if str(error) else type(error).__name__
