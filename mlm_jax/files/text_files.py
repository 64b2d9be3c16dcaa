"""Reads documents from files of plain text, JSON lines, CSV and SMILES, compressed or not (`streams.py`), and from
columns of Parquet and Arrow files (`columnar.py`).

A large file can be read in several parts, which together give the documents of the whole file, in order. A part of a
text file is a range of its bytes, and holds the documents whose first bytes lie in that range. Files that are
compressed, encoded in UTF-16 or UTF-32, or end lines by carriage returns cannot be divided, nor can CSV files.

A document is returned as the bytes in the file; `corpora.clean` decodes it.
"""

import codecs
import glob
import itertools
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mlm_jax.files import buckets, columnar, delimited, json_lines, saved_data_sets, streams
from mlm_jax.files.errors import ConfigError, unreadable

# A longer block of text without a blank line is split, so that memory use is bounded.
MAX_BLOCK_BYTES = 64 << 20
_LOOK_BACK_BYTES = 4096
_LONGEST_PATH = 4096  # characters; PATH_MAX of Linux


def names(patterns: str, kind: str = '') -> list[pathlib.Path]:
    """The files, sorted, that match any of several globs separated by ';' (`**` matches directories at any depth).

    If a file of exactly the given name exists, that file is meant, even if its name has wildcards or a ';'. A file may
    have several names, through symbolic links and `..`.

    Args:
      patterns: the globs.
      kind: what the files are read as, one of `KINDS`. With 'arrow', the directory of a data set stands for its files.

    Raises:
      ConfigError: if a glob matches no file, or a file or directory that cannot be reached.
    """
    files: set[pathlib.Path] = set()
    for pattern in _separated(patterns):
        found = _matches(pattern)
        if kind == 'arrow':
            found = saved_data_sets.without_caches(pattern, found) if found else saved_data_sets.files(pattern)
        if not found and buckets.is_bucket(pattern):
            raise ConfigError(f'no object matches {pattern}: name objects, such as gs://BUCKET/corpus/*.jsonl.gz')
        if not found:
            raise _no_file(pattern)
        files.update(found)
    if not files:
        raise ConfigError('data.corpus names no file: write one or more globs after the colon')
    return sorted(files)


def distinct(files: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The files without those that are other names of files before them; hard links are files of their own."""
    found: dict[str, pathlib.Path] = {}
    for file, identity in _identities(files):
        found.setdefault(identity, file)
    return list(found.values())


def without(files: Iterable[pathlib.Path], others: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The files that are not among others, whatever their names."""
    known = {identity for _, identity in _identities(others)}
    return [file for file, identity in _identities(files) if identity not in known]


def _identities(files: Iterable[pathlib.Path]) -> Iterator[tuple[pathlib.Path, str]]:
    """Each file with its path without symbolic links, of which directories are asked once."""
    real: dict[str, str] = {}
    for file in files:
        if isinstance(file, buckets.BucketPath):
            yield file, str(file)
        elif os.path.islink(file):
            yield file, os.path.realpath(file)
        else:
            directory, name = os.path.split(file)
            if directory not in real:
                real[directory] = os.path.realpath(directory)
            yield file, os.path.join(real[directory], name)


def _separated(patterns: str) -> Iterator[str]:
    """The globs between semicolons; a semicolon in the name of an existing file does not separate globs."""
    parts = patterns.split(';')
    if all(glob.has_magic(part) or _is_file(part.strip()) for part in parts) and not _is_file(patterns):
        yield from map(str.strip, parts)
        return
    while parts:
        longest = _names_up_to(parts)
        joined = (';'.join(parts[:count]) for count in range(longest, 1, -1))
        pattern = next((name for name in joined if _is_file(name) or _is_file(name.strip())), parts[0])
        parts = parts[pattern.count(';') + 1 :]
        if pattern.strip():
            yield pattern if _is_file(pattern) else pattern.strip()


def _names_up_to(parts: Sequence[str]) -> int:
    """How many of the first parts can be the path of one file; asking for longer ones would take long."""
    lengths = itertools.accumulate(len(part) + 1 for part in parts)
    return max(1, sum(1 for _ in itertools.takewhile(lambda length: length <= _LONGEST_PATH, lengths)))


def _matches(pattern: str) -> list[pathlib.Path]:
    if buckets.is_bucket(pattern):
        return _objects(pattern)
    if _is_file(pattern):
        return [pathlib.Path(pattern).expanduser()]
    # If a pattern with brackets matches nothing, the brackets may belong to the name of a file or directory.
    found = (_glob(pattern) for pattern in dict.fromkeys((_expanded(pattern), _literal_brackets(_expanded(pattern)))))
    return next(filter(None, found), [])


def _expanded(pattern: str) -> str:
    try:
        return str(pathlib.Path(pattern).expanduser())
    except RuntimeError as error:  # there is no user of that name
        raise ConfigError(f'{pattern}: {error}. Write the path of the home directory in place of ~') from None


def _literal_brackets(pattern: str) -> str:
    return pattern.replace('[', '[[]')


def _glob(pattern: str) -> list[pathlib.Path]:
    """The files that match a glob; raises ConfigError where some cannot be reached, which `glob` leaves out."""
    _refuse_closed_directories(pattern)
    return [path for path in map(pathlib.Path, glob.glob(pattern, recursive=True)) if _is_there(path)]


def _refuse_closed_directories(pattern: str) -> None:
    """Raises ConfigError for a directory of which a glob needs the names, but may not read them."""
    parts = pathlib.Path(pattern).parts
    for i, part in enumerate(parts):
        if glob.has_magic(part) and '**' not in parts[max(0, i - 1) : i]:  # otherwise its directories are known
            above = parts[: i + 1] if part == '**' else parts[:i]
            for directory in glob.iglob(os.path.join('.', *above, ''), recursive=True):
                _refuse_closed(os.path.normpath(directory), pattern)


def _refuse_closed(directory: str, pattern: str) -> None:
    try:
        with os.scandir(os.path.join(directory, '.')):  # the dot needs the permission to enter it, too
            pass
    except PermissionError as error:
        raise ConfigError(
            f'{pattern!r} cannot be searched completely, because the directory {directory} may not be read '
            f'({error.strerror}): make it readable (chmod u+rx), or write a glob that leaves it out'
        ) from error
    except OSError:  # no directory, or a link that leads into itself
        pass


def _is_there(path: pathlib.Path) -> bool:
    """Whether a path that exists by name is a file; raises ConfigError if it leads to nothing or may not be asked."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(_dangling(path)) from None
        return False  # it has been deleted meanwhile
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError:  # a link that leads into itself
        return False


def _dangling(path: pathlib.Path) -> str:
    return (
        f'{path} is a link to {os.readlink(path)}, which does not exist: fetch its content (git annex get, dvc pull), '
        'mount the disk on which it lies, or remove the link'
    )


def _no_file(pattern: str) -> ConfigError:
    """The error for a pattern that names no file; it says what else is there."""
    path = _expanded(pattern)
    try:
        pathlib.Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pathlib.Path(path).parts)).stat()
    except PermissionError as error:
        return unreadable(repr(pattern), error)
    except (OSError, ValueError):
        pass
    found = [path] if os.path.isdir(path) else sorted(filter(os.path.isdir, glob.glob(path, recursive=True)))
    if found:
        what = 'is a directory' if found == [path] else f'matches no file, but directories, such as {found[0]}'
        inside = os.path.join(found[0], '*')
        return ConfigError(f'{pattern!r} {what}: name files, not directories, for example by {inside!r}')
    return ConfigError(
        f'no file matches {pattern!r} in the working directory {pathlib.Path.cwd()}. Quote globs in the '
        'shell, and check the names of directories'
    )


def _objects(pattern: str) -> list[pathlib.Path]:
    """The objects in a bucket that match a glob, or the one of exactly that name."""
    exact = buckets.BucketPath(pattern)
    try:
        found = exact.found()
        return [found] if found else list(exact.matches())
    except OSError as error:
        raise unreadable(pattern, error) from error


def _is_file(name: str) -> bool:
    if buckets.is_bucket(name):  # asking for the name of each group of globs would take long
        return False
    try:
        return pathlib.Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a name that is too long, has a zero byte, or begins with ~nobody
        return False


def num_parts(path: pathlib.Path, kind: str, part_bytes: int) -> int:
    """The number of parts of about `part_bytes` bytes in which a file can be read; 1 if it cannot be divided.

    Raises:
      ConfigError: if the file is too large for one part and is not of this kind.
      OSError: if the file cannot be read.
    """
    wanted = -(-buckets.size(path) // part_bytes)
    if wanted <= 1:
        return 1
    if kind in columnar.KINDS:
        return max(1, min(wanted, columnar.num_units(path, kind)))
    return wanted if kind in _DIVISIBLE and _is_divisible(path) else 1


def _is_divisible(path: pathlib.Path) -> bool:
    with streams.open_text(path) as file:
        return file.seekable() and not delimited.ends_lines_by_returns(file)


def bounds(size: int, index: int, count: int) -> tuple[int, int]:
    """Where part `index` of `count` equal parts of `size` things begins and ends."""
    return index * size // count, (index + 1) * size // count


def read(path: pathlib.Path, kind: str, text_key: str, index: int = 0, count: int = 1) -> Iterator[bytes]:
    """Yields the documents of one file, or of one part of it.

    Args:
      path: the file.
      kind: one of `KINDS`.
      text_key: the field of a JSON object or the column of a table that holds the text; 'meta.text' reads the field
        `text` of the nested object `meta`.
      index: the number of the part, from 0.
      count: the number of parts, at most `num_parts`.

    Raises:
      ConfigError: if the file cannot be read, is damaged, or lacks the key.
    """
    try:
        if kind in columnar.KINDS:
            yield from columnar.read(path, kind, text_key, index, count)
            return
        start, stop = bounds(path.stat().st_size, index, count)
        yield from READERS[kind](path, text_key, start, None if count == 1 else stop)
    except OSError as error:
        raise unreadable(path, error) from error


def _lines(path: pathlib.Path, start: int, stop: int | None) -> Iterator[bytes]:
    """The lines whose first byte lies in a range; `stop` is None for a whole file."""
    for at, line in _lines_from(path, start, stop):
        if stop is not None and at >= stop:
            return
        yield line


def _lines_from(path: pathlib.Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """All lines from the first that begins at or after `start`, each with the offset at which it begins.

    A byte order mark belongs to the first line, but is not returned. There may be no lines if none begins before
    `stop`. If `stop` is None, the file is read whole, and all offsets are 0.
    """
    if stop is None:
        with streams.open_text(path) as file:
            yield from ((0, line) for line in delimited.lines(file, path))
        return
    with streams.open_text(path, max(0, start - 1)) as file:
        if start:  # the rest of the line before, or only its end if a line begins at `start`
            while (skipped := file.readline(streams.BUFFER_BYTES)) and not skipped.endswith(b'\n'):
                if file.tell() >= stop:
                    return
        following = file.tell()
        at = following if start else 0
        for line in file:
            yield at, line
            at = following = following + len(line)


def _read_blocks(path: pathlib.Path, text_key: str, start: int, stop: int | None) -> Iterator[bytes]:
    block: list[bytes] = []
    size, is_first, is_between, is_mine = 0, True, True, True
    for at, line in _lines_from(path, start, stop):
        if is_first and start:
            is_between = is_mine = _follows_a_blank_line(path, at)
        is_first = False
        if not line.strip():
            if block:
                yield b''.join(block).rstrip()
            block, size, is_between = [], 0, True
            continue
        if stop is not None and at >= stop and (is_between or not is_mine):
            return
        if is_between:
            is_between, is_mine = False, True
        if is_mine:
            block.append(line)
            size += len(line)
        if size > MAX_BLOCK_BYTES:  # all pieces of a long block belong to the part in which it begins
            yield b''.join(block).rstrip()
            block, size = [], 0
    if block:
        yield b''.join(block).rstrip()


def _follows_a_blank_line(path: pathlib.Path, at: int) -> bool:
    """Whether the line that begins at the offset `at` > 0 is the first of a block."""
    with path.open('rb') as file:
        end = at - 1  # of the line before, which ends with a line feed
        while end > 0:
            begin = end - _LOOK_BACK_BYTES if end > 2 * _LOOK_BACK_BYTES else 0
            file.seek(begin)
            text = file.read(end - begin)
            if not begin:
                text = text.removeprefix(codecs.BOM_UTF8)
            if text.rpartition(b'\n')[2].strip():
                return False
            if b'\n' in text:
                return True
            end = begin
    return True


def _read_lines(path: pathlib.Path, text_key: str, start: int, stop: int | None) -> Iterator[bytes]:
    for line in _lines(path, start, stop):
        yield line.rstrip(b'\r\n')


def _read_smiles(path: pathlib.Path, text_key: str, start: int, stop: int | None) -> Iterator[bytes]:
    for line in _lines(path, start, stop):
        yield b''.join(line.split(maxsplit=1)[:1])  # a name may follow the SMILES


def _read_whole(path: pathlib.Path, text_key: str, start: int, stop: int | None) -> Iterator[bytes]:
    with streams.open_text(path) as file:
        yield file.read()


def _read_json_lines(path: pathlib.Path, text_key: str, start: int, stop: int | None) -> Iterator[bytes]:
    try:
        yield from _json_texts(path, text_key, start, stop)
    except ConfigError:
        if start:  # the same error again, now with the number of the line in the file
            list(itertools.islice(_json_texts(path, text_key, 0, None), 1))  # the first line may tell more
            list(_json_texts(path, text_key, start, stop, first=_line_number(path, start)))
        raise


def _json_texts(
    path: pathlib.Path, text_key: str, start: int, stop: int | None, first: int | None = None
) -> Iterator[bytes]:
    """The texts of a range of a file; `first` is the number of its first line, if that is known."""
    lines = _lines(path, start, stop)
    for number, example in json_lines.records(lines, path, 'surrogateescape', first or (2 if start else 1)):
        yield _field(example, text_key, f'line {number} of {path}')


def _line_number(path: pathlib.Path, start: int) -> int:
    """The number, from 1, of the first line that begins at or after the offset `start`."""
    end = next((at for at, _ in _lines_from(path, start, sys.maxsize)), start)
    number = 1
    with path.open('rb') as file:
        while end > 0 and (piece := file.read(min(end, streams.BUFFER_BYTES))):
            number += piece.count(b'\n')
            end -= len(piece)
    return number


def _read_csv(path: pathlib.Path, text_key: str, start: int, stop: int | None) -> Iterator[bytes]:
    records = delimited.records(path, errors='surrogateescape')
    line, names = next(records)
    if not names:
        return
    if text_key not in names:
        raise ConfigError(_without(names, text_key, f'line {line} of {path}'))
    column = names.index(text_key)
    for _, fields in records:
        yield _encoded(fields[column])


def _field(example: Any, key: str, where: str) -> bytes:
    """The text of an example as bytes; null means an empty document."""
    if not isinstance(example, dict):
        raise ConfigError(f'{where} has no {key!r}: it is a {type(example).__name__}, not an object. Set data.text_key')
    text = json_lines.lookup(example, key)
    if text is json_lines.MISSING:
        raise ConfigError(_without(example, key, where))
    if text is None:
        return b''
    if not isinstance(text, str):
        raise ConfigError(f'{where}: {key!r} is a {type(text).__name__}, not text. Set data.text_key')
    return _encoded(text)


def _without(names: Iterable[str], key: str, where: str) -> str:
    return f'{where} has no {key!r}; its fields are {", ".join(names)}. Set data.text_key'


def _encoded(text: str) -> bytes:
    try:
        return text.encode(errors='surrogateescape')  # restores the bytes of the file
    except UnicodeEncodeError:  # a lone surrogate, written as \uD8…
        return text.encode(errors='surrogatepass')


READERS: dict[str, Callable[[pathlib.Path, str, int, int | None], Iterator[bytes]]] = {
    'text': _read_blocks,
    'lines': _read_lines,
    'files': _read_whole,
    'jsonl': _read_json_lines,
    'csv': _read_csv,
    'smi': _read_smiles,
}
_DIVISIBLE = ('text', 'lines', 'jsonl', 'smi')
KINDS = (*READERS, *columnar.KINDS)
