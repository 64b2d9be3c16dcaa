"""Reads records with their line numbers from TSV, CSV and JSON lines files, compressed or not."""

import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mlm_jax.files import delimited, json_lines, streams
from mlm_jax.files.errors import ConfigError

_JSON_LINES = ('.jsonl', '.json')
SUFFIXES = ('.tsv', '.txt', '.csv', *_JSON_LINES)


def read(
    path: pathlib.Path,
    columns: Sequence[str] = (),
    notes: Counter[str] | None = None,
    quoted: bool | None = None,
) -> Iterator[tuple[int, dict]]:
    """Yields the line number (from 1) and the record of each record of a file.

    Args:
      path: the file. Its suffix, before that of a compression, gives its format and must be one of `SUFFIXES`.
      columns: the column names of a TSV or CSV file that has no line of column names.
      notes: if given, lines with a wrong number of fields are skipped and counted here.
      quoted: whether a TSV file quotes fields; None means to find out (`files/delimited.py`).

    Raises:
      ConfigError: if the file cannot be read, or a line cannot be parsed or has a wrong number of fields.
    """
    kind = streams.suffix(path, SUFFIXES)
    if not kind:
        raise ConfigError(f'{path} has an unknown suffix; use one of {", ".join(SUFFIXES)}')
    try:
        if kind in _JSON_LINES:
            yield from _json_objects(path)
            return
        found = delimited.records(path, columns, quoted, left_out=notes)
        _, names = next(found)
        for line, fields in found:
            yield line, dict(zip(names, fields, strict=True))
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror or error}') from error


def field(record: dict, name: str, where: str) -> Any:
    """`record[name]`; 'a.b' reads a nested object. Raises ConfigError, which lists the fields, if there is none."""
    value = json_lines.lookup(record, name)
    if value is json_lines.MISSING:
        raise ConfigError(f'{where} has no {name!r}; its fields are {", ".join(map(str, record))}')
    return value


def text(record: dict, name: str, where: str) -> str:
    """The text in a field.

    Raises:
      ConfigError: if the field is missing or is not text.
    """
    value = field(record, name, where)
    if not isinstance(value, str):
        raise ConfigError(f'{where}: {name!r} is {value!r}, not text')
    return value


def whole_characters(texts: Sequence[str], notes: Counter[str], split: str) -> tuple[str, ...]:
    """Replaces lone surrogates, which JSON may hold but tokenizers reject, by �; counts such examples in `notes`."""
    mended = tuple(json_lines.LONE_SURROGATE.sub('�', text) for text in texts)
    if mended != tuple(texts):
        notes[f'examples of {split} with a lone surrogate, replaced by �'] += 1
    return mended


def _json_objects(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
    with streams.open_text(path) as file:
        for number, record in json_lines.records(delimited.lines(file, path), path):
            if not isinstance(record, dict):
                raise ConfigError(f'line {number} of {path} is not a JSON object: {str(record)[:60]}')
            yield number, record
