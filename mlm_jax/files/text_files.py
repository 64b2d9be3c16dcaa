"""Reads documents from files of plain text, JSON lines, CSV and SMILES, compressed or not (`streams.py`).

A document is returned as the bytes in the file; `corpora.clean` decodes it.
"""

import glob
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlm_jax.files import delimited, json_lines, streams
from mlm_jax.files.errors import ConfigError

# A longer block of text without a blank line is split, so that memory use is bounded.
MAX_BLOCK_BYTES = 64 << 20


def find(patterns: str) -> list[pathlib.Path]:
    """The files, sorted, that match any of several globs separated by ';' (`**` matches directories at any depth).

    If a file of exactly the given name exists, that file is meant, even if its name has wildcards or a ';'.

    Raises:
      ConfigError: if a glob matches no file.
    """
    files: set[pathlib.Path] = set()
    for pattern in _separated(patterns):
        found = _matches(pattern)
        if not found:
            raise ConfigError(
                f'no file matches {pattern!r} in the working directory {pathlib.Path.cwd()}. Quote globs in the '
                'shell, and name files, not directories'
            )
        files.update(found)
    if not files:
        raise ConfigError('data.corpus names no file: write one or more globs after the colon')
    return sorted(files)


def _separated(patterns: str) -> Iterator[str]:
    """The globs between semicolons; a semicolon in the name of an existing file does not separate globs."""
    parts = patterns.split(';')
    while parts:
        joined = (';'.join(parts[:count]) for count in range(len(parts), 1, -1))
        pattern = next((name for name in joined if _is_file(name) or _is_file(name.strip())), parts[0])
        parts = parts[pattern.count(';') + 1 :]
        if pattern.strip():
            yield pattern if _is_file(pattern) else pattern.strip()


def _matches(pattern: str) -> list[pathlib.Path]:
    if _is_file(pattern):
        return [pathlib.Path(pattern).expanduser()]
    path = str(pathlib.Path(pattern).expanduser())
    # If a pattern with brackets matches nothing, the brackets may belong to the name of a file or directory.
    globs = (path, path.replace('[', '[[]'))
    found = ([f for f in map(pathlib.Path, glob.glob(g, recursive=True)) if f.is_file()] for g in globs)
    return next(filter(None, found), [])


def _is_file(name: str) -> bool:
    try:
        return pathlib.Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a name that is too long, has a zero byte, or begins with ~nobody
        return False


def read(path: pathlib.Path, kind: str, text_key: str) -> Iterator[bytes]:
    """Yields the documents of one file.

    Args:
      path: the file.
      kind: a key of `READERS`.
      text_key: the field of a JSON object or the column of a CSV file that holds the text; 'meta.text' reads the
        field `text` of the nested object `meta`.

    Raises:
      ConfigError: if the file cannot be read, is damaged, or lacks the key.
    """
    try:
        yield from READERS[kind](path, text_key)
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror or error}') from error


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    with streams.open_text(path) as file:
        yield from delimited.lines(file, path)


def _read_blocks(path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    block: list[bytes] = []
    size = 0
    for line in _lines(path):
        if line.strip():
            block.append(line)
            size += len(line)
        if block and (not line.strip() or size > MAX_BLOCK_BYTES):
            yield b''.join(block).rstrip()
            block, size = [], 0
    if block:
        yield b''.join(block).rstrip()


def _read_lines(path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    for line in _lines(path):
        yield line.rstrip(b'\r\n')


def _read_smiles(path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    for line in _lines(path):
        yield b''.join(line.split(maxsplit=1)[:1])  # a name may follow the SMILES


def _read_whole(path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    with streams.open_text(path) as file:
        yield file.read()


def _read_json_lines(path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    for number, example in json_lines.records(_lines(path), path, errors='surrogateescape'):
        yield _field(example, text_key, f'line {number} of {path}')


def _read_csv(path: pathlib.Path, text_key: str) -> Iterator[bytes]:
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


READERS: dict[str, Callable[[pathlib.Path, str], Iterator[bytes]]] = {
    'text': _read_blocks,
    'lines': _read_lines,
    'files': _read_whole,
    'jsonl': _read_json_lines,
    'csv': _read_csv,
    'smi': _read_smiles,
}
