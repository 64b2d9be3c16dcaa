"""Documents from files: plain text, JSON lines, CSV and SMILES, also gzip'd, xz'd or zstandard'd.

Documents come as the bytes in the file; `corpora.clean` decodes them.
"""

import csv
import glob
import gzip
import io
import json
import lzma
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mlm_jax import config as config_lib

try:
    import zstandard  # an extra
except ModuleNotFoundError:
    zstandard = None

DAMAGED = (
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    *([zstandard.ZstdError] if zstandard else []),
)

# A block of text without a blank line ends here, so that memory is bounded.
MAX_BLOCK_BYTES = 64 << 20


def find(patterns: str) -> list[pathlib.Path]:
    """The files that match any of several globs, separated by ';' (`**` descends), sorted.

    Raises:
      ConfigError: when a glob matches no file.
    """
    files = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(';'))):
        path = pathlib.Path(pattern).expanduser()
        found = [f for f in map(pathlib.Path, glob.glob(str(path), recursive=True)) if f.is_file()]
        if not found:
            raise config_lib.ConfigError(
                f'no file matches {pattern!r}, seen from {pathlib.Path.cwd()}. Quote a glob in the shell, '
                'and name files, '
                'not directories'
            )
        files.update(found)
    if not files:
        raise config_lib.ConfigError('data.corpus names no file: write one or several globs behind the colon')
    return sorted(files)


def read(path: pathlib.Path, kind: str, text_key: str) -> Iterator[bytes]:
    """The documents of one file.

    Args:
      path: its last suffix may be .gz, .xz or .zst.
      kind: a key of `READERS`.
      text_key: the field of a JSON object or column of a CSV file that holds the text.

    Raises:
      ConfigError: for a file that cannot be read, is damaged, or lacks the key.
    """
    try:
        with open_binary(path) as file:
            yield from READERS[kind](file, path, text_key)
    except DAMAGED as error:
        raise config_lib.ConfigError(f'{path} is damaged or cut off ({error}); copy it again') from error
    except OSError as error:
        raise config_lib.ConfigError(f'cannot read {path}: {error.strerror or error}') from error


def open_binary(path: pathlib.Path) -> BinaryIO:
    """Opens a file to read its bytes, decompressed; one that turns out cut off raises one of `DAMAGED`."""
    if path.suffix == '.gz':
        return gzip.open(path)
    if path.suffix == '.xz':
        return lzma.open(path)
    if path.suffix == '.zst':
        return _open_zstandard(path)
    return open(path, 'rb')


def _open_zstandard(path: pathlib.Path) -> BinaryIO:
    if zstandard is None:
        raise config_lib.ConfigError(f"{path} needs the package zstandard: pip install 'mlm_jax[zstd]'")
    return io.BufferedReader(zstandard.open(path))  # its own reader yields no lines


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without a byte order mark."""
    for number, line in enumerate(file):
        yield line.removeprefix(b'\xef\xbb\xbf') if number == 0 else line


def _read_blocks(file: BinaryIO, path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    block, size = [], 0
    for line in _lines(file):
        if line.strip():
            block.append(line)
            size += len(line)
        if block and (not line.strip() or size > MAX_BLOCK_BYTES):
            yield b''.join(block).rstrip()
            block, size = [], 0
    if block:
        yield b''.join(block).rstrip()


def _read_lines(file: BinaryIO, path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    for line in _lines(file):
        yield line.rstrip(b'\r\n')


def _read_smiles(file: BinaryIO, path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    for line in _lines(file):
        yield b''.join(line.split(maxsplit=1)[:1])  # a name may follow


def _read_whole(file: BinaryIO, path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    yield b''.join(_lines(file))


def _read_json_lines(file: BinaryIO, path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            example = json.loads(line.decode(errors='surrogateescape'))
        except json.JSONDecodeError as error:
            raise config_lib.ConfigError(f'line {number} of {path} is not JSON: {error}') from None
        yield _field(example, text_key, f'line {number} of {path}')


def _read_csv(file: BinaryIO, path: pathlib.Path, text_key: str) -> Iterator[bytes]:
    csv.field_size_limit(2**31 - 1)  # its default refuses texts beyond 128 KiB
    lines = (line.decode(errors='surrogateescape') for line in _lines(file))
    rows = csv.DictReader(lines, delimiter='\t' if '.tsv' in path.suffixes else ',')
    try:
        for row in rows:
            yield _field(row, text_key, f'{path}, line {rows.line_num}')
    except csv.Error as error:
        raise config_lib.ConfigError(f'line {rows.line_num} of {path} is not CSV: {error}') from None


def _field(example: dict, key: str, where: str) -> bytes:
    """The text of an example as bytes; a null is an empty document."""
    if not isinstance(example, dict) or key not in example:
        names = ', '.join(map(str, example)) if isinstance(example, dict) else f'none: it is a {type(example).__name__}'
        raise config_lib.ConfigError(f'{where} has no {key!r}; its fields are {names}. Set data.text_key')
    text = example[key]
    if text is None:
        return b''
    if not isinstance(text, str):
        raise config_lib.ConfigError(f'{where}: {key!r} is a {type(text).__name__}, not text. Set data.text_key')
    try:
        return text.encode(errors='surrogateescape')  # the bytes as they were in the file
    except UnicodeEncodeError:  # half a surrogate pair, written as \uD8…
        return text.encode(errors='surrogatepass')


READERS: dict[str, Callable[[BinaryIO, pathlib.Path, str], Iterator[bytes]]] = {
    'text': _read_blocks,
    'lines': _read_lines,
    'files': _read_whole,
    'jsonl': _read_json_lines,
    'csv': _read_csv,
    'smi': _read_smiles,
}
