"""Reads JSON lines (one object on each line), including the irregular files that occur in practice."""

import json
import pathlib
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from mlm_jax.files import buckets
from mlm_jax.files.errors import ConfigError

MISSING = object()
# Half of a surrogate pair, which JSON may write by itself (\ud83d) but UTF-8 cannot encode.
LONE_SURROGATE = re.compile('[\ud800-\udfff]')

# Reads the whole array before it creates the other file, which must not be there yet.
_AS_LINES = (
    'python -c "import json, sys; from mlm_jax.files import buckets, streams; '
    'values = json.load(streams.open_text(buckets.path(sys.argv[1]))); '
    "open(sys.argv[2], 'x').writelines(json.dumps(value) + '\\n' for value in values)\""
)
_SUFFIXES = re.compile(r'(?:\.(?:jsonl?|ndjson))?(?:\.(?:gz|gzip|bgz|xz|lzma|bz2|bzip2|zst|zstd))?$', re.IGNORECASE)


def records(
    lines: Iterable[bytes] | BinaryIO, path: pathlib.Path, errors: str = 'strict', first: int = 1
) -> Iterator[tuple[int, Any]]:
    """Yields the number and the JSON value of each line that is not blank.

    Args:
      lines: the lines, in UTF-8. Only '\\n' ends a line; other Unicode line separators do not.
      path: the path of the file, for error messages.
      errors: how to treat bytes that are not UTF-8, as in `bytes.decode`.
      first: the number of the first line; only line 1 shows whether the whole file is something else.

    Raises:
      ConfigError: if a line is not JSON or, with 'strict', not UTF-8, or if the whole file is one JSON array.
    """
    is_first = first == 1
    for number, line in enumerate(lines, start=first):
        if line.isspace():
            continue
        where = f'line {number} of {path}'
        yield number, _first(line, path, where, errors) if is_first else parse(line, where, errors)
        is_first = False


def parse(line: bytes, where: str, errors: str = 'strict') -> Any:
    """The value of a line of JSON.

    An integer with more digits than Python can parse is returned as text.

    Raises:
      ConfigError: if the line is not JSON or is nested too deeply; the message calls the line `where`.
    """
    try:
        text = line.decode(errors=errors)
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python refuses to parse integers of more than 4,300 digits
            return json.loads(text, parse_int=_whole_number)
    except UnicodeDecodeError as error:
        raise ConfigError(f'{where} is not UTF-8: {error}. If it is Latin-1, run iconv -f LATIN1 -t UTF-8') from None
    except json.JSONDecodeError as error:
        raise ConfigError(f'{where} is not JSON: {error}') from None
    except RecursionError:
        raise ConfigError(f'{where} is nested too deeply to be read; remove that line') from None


def lookup(record: dict, key: str) -> Any:
    """`record[key]`; if there is none, 'a.b' means the key b of the object a; `MISSING` if neither exists."""
    if key in record:
        return record[key]
    node = record
    for part in key.split('.'):
        if not isinstance(node, dict) or part not in node:
            return MISSING
        node = node[part]
    return node


def _first(line: bytes, path: pathlib.Path, where: str, errors: str) -> Any:
    """Parses the first line, which shows whether the file is something other than JSON lines."""
    begin = line.lstrip()
    try:
        value = parse(line, where, errors)
    except ConfigError as error:
        if begin.startswith(b'['):
            raise _array(path) from None
        if begin.startswith(b'<'):
            raise ConfigError(f'{path} is a web page or XML, not JSON lines; check where it came from') from None
        if begin.startswith(b'{') and b'}' not in begin:
            raise ConfigError(
                f'{error}. JSON lines hold one object on each line, but this file spreads an object over several lines'
            ) from None
        raise
    if isinstance(value, list) and any(isinstance(element, dict) for element in value):
        raise _array(path)
    _refuse_repeated_keys(line.decode(errors=errors), where)
    return value


def _refuse_repeated_keys(text: str, where: str) -> None:
    """Raises ConfigError if an object has a key twice: `json` takes the last value, other readers the first one."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if repeated:
            raise ConfigError(
                f'{where} has the key {repeated[0]!r} more than once in an object, so it is open which value is meant: '
                'rename or remove all but one in the whole file'
            )

    json.loads(text, object_pairs_hook=check, parse_int=str)


def _array(path: pathlib.Path) -> ConfigError:
    name = f'{_SUFFIXES.sub("", path.name, count=1)}.lines.jsonl'
    target = name if buckets.is_bucket(path) else str(path.with_name(name))
    return ConfigError(
        f'{path} is one JSON array, not JSON lines, which hold one object on each line. Convert it, and name the new '
        f'file:\n    {_AS_LINES} {shlex.quote(str(path))} {shlex.quote(target)}'
    )


def _whole_number(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits
