"""JSON lines: an object on each line, whatever people have in them."""

import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from mlm_jax.files.errors import ConfigError

MISSING = object()
# Half of a character beyond U+FFFF, which JSON may write by itself (\ud83d), and which UTF-8 does not have.
LONE_SURROGATE = re.compile('[\ud800-\udfff]')

_AS_LINES = 'python -c "import json,sys; [print(json.dumps(x)) for x in json.load(sys.stdin)]"'


def records(lines: Iterable[bytes] | BinaryIO, path: pathlib.Path, errors: str = 'strict') -> Iterator[tuple[int, Any]]:
    """What stands on each line that is not blank, and the number of the line, from 1.

    Args:
      lines: in UTF-8, each ended by '\\n'; other characters that end lines elsewhere end none here.
      path: of the file, for errors.
      errors: what becomes of bytes that are not UTF-8, as `bytes.decode` says.

    Raises:
      ConfigError: for a line that is not JSON or, with 'strict', not UTF-8; and where the whole file is one array.
    """
    is_first = True
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        where = f'line {number} of {path}'
        yield number, _first(line, path, where, errors) if is_first else parse(line, where, errors)
        is_first = False


def parse(line: bytes, where: str, errors: str = 'strict') -> Any:
    """What a line of JSON stands for.

    A whole number of more digits than Python reads comes as text.

    Raises:
      ConfigError: for what is not JSON, or nested too deeply; `where` names it.
    """
    try:
        text = line.decode(errors=errors)
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python reads no integer of more than 4,300 digits
            return json.loads(text, parse_int=_whole_number)
    except UnicodeDecodeError as error:
        raise ConfigError(f'{where} is not UTF-8: {error}. If it is Latin-1: iconv -f LATIN1 -t UTF-8') from None
    except json.JSONDecodeError as error:
        raise ConfigError(f'{where} is not JSON: {error}') from None
    except RecursionError:
        raise ConfigError(f'{where} is nested too deeply to be read; leave that line out') from None


def lookup(record: dict, key: str) -> Any:
    """`record[key]`; where there is none, 'a.b' is b of the object a; else `MISSING`."""
    if key in record:
        return record[key]
    node = record
    for part in key.split('.'):
        if not isinstance(node, dict) or part not in node:
            return MISSING
        node = node[part]
    return node


def _first(line: bytes, path: pathlib.Path, where: str, errors: str) -> Any:
    """The first line: it shows where the file is no JSON lines at all."""
    begin = line.lstrip()
    try:
        value = parse(line, where, errors)
    except ConfigError as error:
        if begin.startswith(b'['):
            raise _array(path) from None
        if begin.startswith(b'<'):
            raise ConfigError(f'{path} is a web page or XML, not JSON lines; was its address the right one?') from None
        if begin.startswith(b'{') and b'}' not in begin:
            raise ConfigError(
                f'{error}. JSON lines hold an object on each line, and this file spreads one over several'
            ) from None
        raise
    if isinstance(value, list) and any(isinstance(element, dict) for element in value):
        raise _array(path)
    return value


def _array(path: pathlib.Path) -> ConfigError:
    return ConfigError(
        f'{path} is one JSON array, not JSON lines, which hold an object on each line. Convert it:\n'
        f"    {_AS_LINES} < '{path}' > '{path.with_suffix('.jsonl').name}'"
    )


def _whole_number(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits
