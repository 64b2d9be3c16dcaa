"""Tables in text files: fields separated by commas (CSV) or tabs (TSV), below a line of names.

One reader for corpora and for downstream tasks. No field is cut and no record guessed at: a record with more or fewer
fields than there are names, a quotation mark that never closes, and a column named twice are errors that name the line.

A CSV file quotes fields as RFC 4180 says ("He said ""yes""."). Two other habits are recognised, each by a sign that no
file of RFC 4180 has and after the whole file has been parsed so: quotation marks behind a backslash (\\"), and blanks
between the comma and the quotation mark (, ").

Some TSV files quote fields (those of pandas and of spreadsheets), and in others a quotation mark is a character like
any other (GLUE's). Where fields begin with one, the whole file decides; see `_tsv_is_quoted`.
"""

import csv
import dataclasses
import io
import pathlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import tqdm

from mlm_jax.files import streams
from mlm_jax.files.errors import ConfigError

MAX_FIELD_CHARACTERS = 1 << 28  # a longer field is one whose quotation mark never closes
_EARLIER_BYTES = 64  # of the piece before, which a pattern may need


@dataclasses.dataclass(frozen=True)
class Format:
    """How a file writes its fields.

    Attributes:
      delimiter: ',' or a tab.
      quoted: whether a field may stand between quotation marks.
      escaped: whether a quotation mark in such a field may stand behind a backslash.
      padded: whether blanks may stand before the quotation mark that opens a field.
      returns: whether a carriage return may stand in a field without quotation marks, as pandas writes it.
    """

    delimiter: str
    quoted: bool = True
    escaped: bool = False
    padded: bool = False
    returns: bool = False


def records(
    path: pathlib.Path,
    columns: Sequence[str] = (),
    quoted: bool | None = None,
    errors: str = 'strict',
    left_out: Counter[str] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """The names of the columns, and then each record, with the number of the line where it ends, from 1.

    Args:
      path: with .tsv in its name it is TSV, with .txt one of both, else CSV.
      columns: their names, where the file has no line of names.
      quoted: of TSV, where it is known; None finds out.
      errors: what becomes of bytes that are not UTF-8, as `bytes.decode` says.
      left_out: where given, records with a wrong number of fields are left out and counted here.

    Raises:
      ConfigError: for a file that is no table, with the line.
      OSError: for a file that cannot be read.
    """
    form = _format(path, quoted)
    found = _parse(path, form, errors)
    names, line = list(columns), 0
    try:
        if not columns:
            line, names = next(found, (0, []))
        _check_names(names, path, form)
        yield line, names
        width = len(names)
        for line, fields in found:
            if len(fields) == width:
                yield line, fields
            elif left_out is not None:
                left_out[f'lines of {path.name} without {width} fields, left out'] += 1
            else:
                raise ConfigError(_ragged(path, line, fields, names, form))
    except UnicodeDecodeError:
        raise ConfigError(_not_utf8(path)) from None
    except csv.Error as error:
        raise ConfigError(_unparsed(path, form, line + 1, error)) from None


def _parse(path: pathlib.Path, form: Format, errors: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, and the lines where they end; raises csv.Error."""
    with streams.open_text(path) as file:
        if not form.quoted:
            for number, line in enumerate(lines(file, path), start=1):
                text = line.decode(errors=errors).removesuffix('\n').removesuffix('\r')
                if text and not (text.isspace() and form.delimiter not in text):
                    yield number, text.split(form.delimiter)
            return
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        rows = csv.reader(
            _text_lines(file, form, errors), delimiter=form.delimiter, skipinitialspace=form.padded, strict=True
        )
        for row in rows:
            if form.returns:
                row = [field.replace(_RETURN, '\r') for field in row]
            if len(row) > 1 or (row and not row[0].isspace()):
                yield rows.line_num, row


_RETURN = '\udc0d'  # stands for a carriage return on its way through the module csv; text does not hold it


def _text_lines(file: BinaryIO, form: Format, errors: str) -> Iterable[str]:
    """The lines of a quoted table, with their ends."""
    if not form.returns or _ends_lines_by_returns(file):
        # newline='' ends lines at \r too, and leaves those of quoted fields as they are.
        text = io.TextIOWrapper(file, encoding='utf-8', errors=errors, newline='')
    else:
        text = (re.sub('\r(?!\n)', _RETURN, line.decode(errors=errors)) for line in file)
    return map(_doubled, text) if form.escaped else text


def _ends_lines_by_returns(file: BinaryIO) -> bool:
    head = file.peek(streams.HEAD_BYTES)
    return b'\r' in head and b'\n' not in head


def lines(file: BinaryIO, path: pathlib.Path) -> Iterator[bytes]:
    """The lines of a file that `streams.open_text` opened: ended by '\\n', or in old files all by '\\r'.

    Raises:
      ConfigError: where lines end by '\\r' at first and by '\\n' later.
    """
    if not _ends_lines_by_returns(file):
        yield from file
        return
    rest = b''
    while piece := file.read(streams.BUFFER_BYTES):
        if b'\n' in piece:
            raise _mixed_ends(path)
        *whole, rest = (rest + piece).split(b'\r')
        yield from (line + b'\n' for line in whole)
    if rest:
        yield rest


# ---- Which format ---------------------------------------------------------------------------------------------------


def _format(path: pathlib.Path, quoted: bool | None) -> Format:
    if _delimiter(path, quoted) == ',':
        return _csv_format(path)
    quoted = _tsv_is_quoted(path) if quoted is None else quoted
    return Format('\t', quoted=quoted, returns=quoted and _holds(path, [_RETURN_WITHIN_LINE])[0])


def _delimiter(path: pathlib.Path, quoted: bool | None) -> str:
    """By the name; a .txt may be both, and its first line decides."""
    kind = streams.suffix(path, ('.tsv', '.txt', '.csv'))
    if kind != '.txt' or quoted is not None:
        return ',' if kind in ('.csv', '') else '\t'
    with streams.open_text(path) as file:
        first = next(lines(file, path), b'')
    return ',' if b',' in first and b'\t' not in first else '\t'


# A quotation mark in a field of RFC 4180 is doubled, or ends the field. So none stands behind a backslash and before
# something else, nor does one open a field behind a comma and blanks. With each pattern go bytes of all its matches.
_BEHIND_BACKSLASH = (b'\\"', rb'\\"[^",\r\n]')
_RETURN_WITHIN_LINE = (b'\r', rb'\r[^\n]')
_BEHIND_BLANKS = (b' "', rb', +"[^",\r\n]'), (b'\n ', rb'\n +"[^",\r\n]')


def _csv_format(path: pathlib.Path) -> Format:
    """RFC 4180, unless the file shows a sign of another habit: then the first format in which it parses."""
    returns, has_escapes, *has_blanks = _holds(path, [_RETURN_WITHIN_LINE, _BEHIND_BACKSLASH, *_BEHIND_BLANKS])
    forms = [Format(',', padded=True, returns=returns)] * any(has_blanks) + [Format(',', returns=returns)]
    forms += [dataclasses.replace(form, escaped=True) for form in forms] * has_escapes
    if len(forms) == 1:
        return forms[0]
    return next((form for form in forms if _parses(path, form)), forms[0])


def _holds(path: pathlib.Path, wanted: Sequence[tuple[bytes, bytes]]) -> list[bool]:
    """Whether the file holds a match of each pattern; each is given with bytes that are in every match."""
    patterns, found = [(part, re.compile(pattern)) for part, pattern in wanted], [False] * len(wanted)
    with streams.open_text(path) as file:
        earlier = b''
        while not all(found) and (piece := file.read(streams.BUFFER_BYTES)):
            piece = earlier + piece
            for i, (part, pattern) in enumerate(patterns):
                # '^' is the start of the file: no later piece is searched from its first byte.
                found[i] = found[i] or (part in piece and pattern.search(piece, len(earlier) > 0) is not None)
            earlier = piece[-_EARLIER_BYTES:]
    return found


def _parses(path: pathlib.Path, form: Format) -> bool:
    """Whether the whole file is a table of that format."""
    try:
        return len({len(fields) for _, fields in _parse(path, form, 'replace')}) <= 1
    except csv.Error:
        return False


def _doubled(line: str) -> str:
    r"""The line with `\"` written as `""`. Of several backslashes before a quotation mark each pair is one."""
    if '\\"' not in line:
        return line
    return re.sub(r'(\\+)"', lambda found: '\\' * (len(found[1]) // 2) + '"' * (1 + len(found[1]) % 2), line)


def _tsv_is_quoted(path: pathlib.Path) -> bool:
    """Whether a TSV file quotes fields.

    It does if all fields that begin with a quotation mark are quoted fields as they should be, and one of these says
    so: without it records would have different numbers of fields; such a field holds a doubled quotation mark or a
    carriage return; all names are quoted; or commas are in quoted fields alone, and in each of them, as spreadsheets
    write it.
    """
    if not _holds(path, [(b'"', rb'(?:^|[\t\r\n])"')])[0]:
        return False
    signs = _quoting_signs(path)
    if signs.is_ragged or (signs.is_open and (signs.is_needed or signs.in_names)):
        is_quoted = _parses(path, Format('\t', returns=_holds(path, [_RETURN_WITHIN_LINE])[0]))
    else:
        is_quoted = not signs.is_open and (signs.is_needed or signs.in_names or signs.for_commas)
    how = 'are quoted' if is_quoted else 'are read as they stand, the marks included'
    tqdm.tqdm.write(f'{path}: fields that begin with a quotation mark {how}', file=sys.stderr)
    return is_quoted


@dataclasses.dataclass(frozen=True)
class _Signs:
    """What a TSV file shows when it is read without quoting.

    Attributes:
      is_ragged: its records have different numbers of fields.
      is_open: a field begins with a quotation mark and does not end as a quoted field should.
      is_needed: a quoted field holds a doubled quotation mark, or a carriage return.
      in_names: all names are quoted.
      for_commas: just those fields are quoted that hold a comma.
    """

    is_ragged: bool
    is_open: bool
    is_needed: bool
    in_names: bool
    for_commas: bool


def _quoting_signs(path: pathlib.Path) -> _Signs:
    widths, seen, in_names = set(), Counter(), None
    for _, fields in _parse(path, Format('\t', quoted=False), 'replace'):
        widths.add(len(fields))
        kinds = [_kind_of_field(field) for field in fields]
        in_names = in_names if in_names is not None else all(kind.startswith('quoted') for kind in kinds)
        seen.update(kinds)
    return _Signs(
        is_ragged=len(widths) > 1,
        is_open=seen['open'] > 0,
        is_needed=seen['quoted, needed'] > 0,
        in_names=bool(in_names),
        for_commas=seen['quoted, comma'] > 0 == seen['quoted'] + seen['plain, comma'],
    )


def _kind_of_field(field: str) -> str:
    if not field.startswith('"'):
        return 'plain, comma' if ',' in field else 'plain'
    inside = field[1:-1].replace('""', '')
    if len(field) < 2 or not field.endswith('"') or '"' in inside:
        return 'open'
    if '""' in field[1:-1] or '\r' in inside:
        return 'quoted, needed'
    return 'quoted, comma' if ',' in field else 'quoted'


# ---- What is wrong --------------------------------------------------------------------------------------------------


def _check_names(names: Sequence[str], path: pathlib.Path, form: Format) -> None:
    if any('\r' in name.replace('\r\n', '') for name in names):
        raise _mixed_ends(path)
    twice = [name for name, times in Counter(names).items() if name and times > 1]
    if twice:
        raise ConfigError(
            f'{path} has {len([n for n in names if n == twice[0]])} columns named {twice[0]!r}; rename all but one'
        )
    other = next((mark for mark in ';\t|' if len(names) == 1 and mark in names[0] and form.delimiter == ','), None)
    if other:
        raise ConfigError(
            f'{path} separates its names by {other!r}, and not by commas: {names[0][:80]!r}. Write it with commas, or '
            'with tabs and a name that ends in .tsv'
        )


def _mixed_ends(path: pathlib.Path) -> ConfigError:
    return ConfigError(
        f'{path} ends its first lines by a carriage return, and later ones by a line feed: write the same everywhere, '
        "as tr '\\r' '\\n' does"
    )


def _ragged(path: pathlib.Path, line: int, fields: Sequence[str], names: Sequence[str], form: Format) -> str:
    message = f'line {line} of {path} has {len(fields)} fields, and not {len(names)}: {", ".join(names)}'
    if not form.quoted or len(fields) < len(names):
        return message
    mark = 'tabs' if form.delimiter == '\t' else 'commas'
    return f'{message}. Fields that hold {mark} must stand between quotation marks, as csv.writer and pandas write them'


def _not_utf8(path: pathlib.Path) -> str:
    with streams.open_text(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f'{path} is not UTF-8: line {number}: {error}. If it is Latin-1: iconv -f LATIN1 -t UTF-8'
    return f'{path} is not UTF-8'


def _unparsed(path: pathlib.Path, form: Format, first: int, error: csv.Error) -> str:
    """Why the record that begins on line `first` does not parse: mostly a quotation mark that does not close."""
    start, end, behind = _last_quoted_field(path, form, first)
    if start is None:
        return f'line {first} of {path} does not parse: {error}'
    cure = 'Write a quotation mark within a field twice ("")'
    if end is None:
        return f'line {start} of {path} opens a quotation mark that never closes. {cure}, or delete it'
    return (
        f'line {start} of {path} opens a quotation mark, and that which closes it, on line {end}, is followed by '
        f'{behind!r} and not by the end of the field. {cure}'
    )


def _last_quoted_field(path: pathlib.Path, form: Format, first: int) -> tuple[int | None, int | None, str]:
    """Of the record that begins on line `first`: the quoted field at which it goes wrong, or its last one.

    Returns:
      The line where the field opens, None where no field does; the line where it closes, None where it does not; and
      what stands behind it.
    """
    start, end, blanks = None, None, ' ' * form.padded
    for number, line in _lines_from(path, form, first):
        line, at = line.rstrip('\r\n'), 0
        while at <= len(line):
            if start is None or end is not None:  # outside of quotation marks, at the start of a field
                at += len(line[at:]) - len(line[at:].lstrip(blanks)) if blanks else 0
                if line.startswith('"', at):
                    start, end, at = number, None, at + 1
                else:
                    comma = line.find(form.delimiter, at)
                    at = comma + 1 if comma >= 0 else len(line) + 1
                continue
            close = _closing(line, at)
            if close < 0:
                break
            end, at = number, close + 1
            if at < len(line) and line[at] != form.delimiter:
                return start, end, line[at : at + 20]
            at += 1
        if start is None or end is not None:
            break
    return start, end, ''


def _closing(line: str, at: int) -> int:
    """Where the quotation mark stands that closes the field in which `at` is; −1 where none does on this line."""
    while (at := line.find('"', at)) >= 0 and line.startswith('"', at + 1):
        at += 2
    return at


def _lines_from(path: pathlib.Path, form: Format, first: int) -> Iterable[tuple[int, str]]:
    with streams.open_text(path) as file:
        text = _text_lines(file, form, 'replace')  # named, to be alive when the file is closed below it
        for number, line in enumerate(text, start=1):
            if number >= first:
                yield number, line
