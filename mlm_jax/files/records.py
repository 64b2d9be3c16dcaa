"""Records of files with columns: TSV, CSV and JSON lines, compressed or not, each with the line it stood on."""

import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

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
    """The records of a file and their line numbers, from 1.

    Args:
      path: its suffix, before that of a compression, says what it is: one of `SUFFIXES`.
      columns: names of the columns where the file has no first line of names; of TSV and CSV only.
      notes: where given, lines with a wrong number of fields are left out and counted here.
      quoted: whether a TSV file quotes fields; None finds out (`files/delimited.py`).

    Raises:
      ConfigError: for a file that cannot be read, or a line that does not parse or has a wrong number of fields.
    """
    kind = streams.suffix(path, SUFFIXES)
    if not kind:
        raise ConfigError(f'{path} is of no known kind: name it {", ".join("*" + suffix for suffix in SUFFIXES)}')
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


def field(record: dict, name: str, where: str):
    """`record[name]`, of nested objects 'a.b', or a ConfigError that says which fields there are."""
    value = json_lines.lookup(record, name)
    if value is json_lines.MISSING:
        raise ConfigError(f'{where} has no {name!r}; its fields are {", ".join(map(str, record))}')
    return value


def text(record: dict, name: str, where: str) -> str:
    """A field that is text.

    Raises:
      ConfigError: when it is missing, or no text.
    """
    value = field(record, name, where)
    if not isinstance(value, str):
        raise ConfigError(f'{where}: {name!r} is {value!r}, and not text')
    return value


def whole_characters(texts: Sequence[str], notes: Counter[str], split: str) -> tuple[str, ...]:
    """Texts that a tokenizer can take: half a character, as JSON may hold it, becomes � and is counted in `notes`."""
    mended = tuple(json_lines.LONE_SURROGATE.sub('�', text) for text in texts)
    if mended != tuple(texts):
        notes[f'examples of {split} with half a character, replaced by �'] += 1
    return mended


def _json_objects(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
    with streams.open_text(path) as file:
        for number, record in json_lines.records(delimited.lines(file, path), path):
            if not isinstance(record, dict):
                raise ConfigError(f'line {number} of {path} is no JSON object: {str(record)[:60]}')
            yield number, record
