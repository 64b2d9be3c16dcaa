"""Records of files with columns: TSV, CSV and JSON lines, compressed or not, each with the line it stood on."""

import csv
import io
import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

from mlm_jax.config import ConfigError
from mlm_jax.data import text_files

# GLUE's files hold quotation marks that mean nothing; a CSV file quotes fields with commas in them.
_DIALECTS = {
    '.tsv': {'delimiter': '\t', 'quoting': csv.QUOTE_NONE},
    '.txt': {'delimiter': '\t', 'quoting': csv.QUOTE_NONE},
    '.csv': {'delimiter': ','},
}
_JSON_LINES = ('.jsonl', '.json')
SUFFIXES = (*_DIALECTS, *_JSON_LINES)


def read(
    path: pathlib.Path, columns: Sequence[str] = (), notes: Counter[str] | None = None
) -> Iterator[tuple[int, dict]]:
    """The records of a file and their line numbers, from 1.

    Args:
      path: its suffix, before that of a compression, says what it is: one of `SUFFIXES`.
      columns: names of the columns where the file has no first line of names; of TSV and CSV only.
      notes: where given, lines with a wrong number of fields are left out and counted here.

    Raises:
      ConfigError: for a file that cannot be read, or a line that does not parse or has a wrong number of fields.
    """
    kinds = [suffix for suffix in path.suffixes if suffix in SUFFIXES]
    if not kinds:
        raise ConfigError(f'{path} is of no known kind: name it {", ".join("*" + suffix for suffix in SUFFIXES)}')
    try:
        with text_files.open_binary(path) as file:
            lines = io.TextIOWrapper(file, encoding='utf-8-sig', newline='')
            if kinds[-1] in _JSON_LINES:
                yield from _json_lines(lines, path)
            else:
                yield from _rows(lines, path, _DIALECTS[kinds[-1]], columns, notes)
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path} is not UTF-8: {error}') from error
    except text_files.DAMAGED as error:
        raise ConfigError(f'{path} is damaged or cut off ({error}); copy it again') from error
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror or error}') from error


def field(record: dict, name: str, where: str):
    """`record[name]`, or a ConfigError that says which fields there are."""
    if name not in record:
        raise ConfigError(f'{where} has no {name!r}; its fields are {", ".join(map(str, record))}')
    return record[name]


def text(record: dict, name: str, where: str) -> str:
    """A field that is text.

    Raises:
      ConfigError: when it is missing, or no text.
    """
    value = field(record, name, where)
    if not isinstance(value, str):
        raise ConfigError(f'{where}: {name!r} is {value!r}, and not text')
    return value


def _json_lines(lines, path: pathlib.Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f'line {number} of {path} is not JSON: {error}') from None
        if not isinstance(record, dict):
            raise ConfigError(f'line {number} of {path} is no JSON object: {line.strip()[:60]}')
        yield number, record


def _rows(lines, path: pathlib.Path, dialect: dict, columns, notes) -> Iterator[tuple[int, dict]]:
    csv.field_size_limit(2**31 - 1)
    rows, names = csv.reader(lines, **dialect), list(columns)
    try:
        for row in rows:
            if not row:
                continue
            if not names:
                names = row
                continue
            if len(row) != len(names) and notes is not None:
                notes[f'lines of {path.name} without {len(names)} fields, left out'] += 1
                continue
            if len(row) != len(names):
                raise ConfigError(
                    f'line {rows.line_num} of {path} has {len(row)} fields, and not {len(names)}: {", ".join(names)}'
                )
            yield rows.line_num, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ConfigError(f'line {rows.line_num} of {path} does not parse: {error}') from None
