"""Tables in text files: fields separated by commas (CSV) or tabs (TSV), below a line of column names.

This reader serves both corpora and downstream tasks. It never truncates a field and never guesses at a record: a record
with more or fewer fields than there are column names, a quotation mark that never closes, and two columns of the same
name are errors that name the line.

CSV files quote fields as RFC 4180 prescribes ("He said ""yes""."). Two other conventions are supported: quotation marks
escaped by a backslash (\\"), and spaces between a comma and a quotation mark (, "). Each is recognized by a pattern
that no RFC 4180 file contains, and is used only if the whole file can be parsed that way.

Some TSV files quote fields (those written by pandas and by spreadsheets); in others (GLUE's), a quotation mark is an
ordinary character. If fields begin with a quotation mark, the whole file is examined to decide; see `_tsv_is_quoted`.
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

MAX_FIELD_CHARACTERS = 1 << 28  # a longer field means that a quotation mark never closes
_EARLIER_BYTES = 64  # kept from the previous piece, because a match may begin there


@dataclasses.dataclass(frozen=True)
class Format:
    """The conventions by which a file writes its fields.

    Attributes:
      delimiter: ',' or a tab.
      quoted: whether a field may be enclosed in quotation marks.
      escaped: whether a quotation mark inside a quoted field may be escaped by a backslash.
      padded: whether spaces may precede the quotation mark that opens a field.
      returns: whether an unquoted field may contain a carriage return, as pandas writes it.
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
    """Yields the column names and then each record, each with the number (from 1) of the line on which it ends.

    Args:
      path: the file. The suffix .tsv means TSV, .txt means either TSV or CSV, anything else means CSV.
      columns: the column names, if the file has no line of column names.
      quoted: whether a TSV file quotes fields; None means that the file is examined to find out.
      errors: how to treat bytes that are not UTF-8, as in `bytes.decode`.
      left_out: if given, records with a wrong number of fields are skipped and counted here.

    Raises:
      ConfigError: if the file is not a valid table; the message names the line.
      OSError: if the file cannot be read.
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
                left_out[f'lines of {path.name} without {width} fields, skipped'] += 1
            else:
                raise ConfigError(_ragged(path, line, fields, names, form))
    except UnicodeDecodeError:
        raise ConfigError(_not_utf8(path)) from None
    except csv.Error as error:
        raise ConfigError(_unparsed(path, form, line + 1, error)) from None


def _parse(path: pathlib.Path, form: Format, errors: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line on which each non-blank record ends, and the record; raises csv.Error."""
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


_RETURN = '\udc0d'  # replaces a carriage return while the module csv parses; it never occurs in text


def _text_lines(file: BinaryIO, form: Format, errors: str) -> Iterable[str]:
    """The lines of a quoted table, including their line endings."""
    if not form.returns or ends_lines_by_returns(file):
        # newline='' also ends lines at \r, and leaves line breaks inside quoted fields unchanged.
        text: Iterable[str] = io.TextIOWrapper(file, encoding='utf-8', errors=errors, newline='')
    else:
        text = (re.sub('\r(?!\n)', _RETURN, line.decode(errors=errors)) for line in file)
    return map(_doubled, text) if form.escaped else text


def ends_lines_by_returns(file: BinaryIO) -> bool:
    """Whether the lines of a file that was just opened by `streams.open_text` end with '\\r', as in very old files."""
    head = file.peek(streams.HEAD_BYTES)
    return b'\r' in head and b'\n' not in head


def lines(file: BinaryIO, path: pathlib.Path) -> Iterator[bytes]:
    """The lines of a file opened by `streams.open_text`: they end with '\\n' or, throughout an old file, with '\\r'.

    Raises:
      ConfigError: if the first lines end with '\\r' and later ones with '\\n'.
    """
    if not ends_lines_by_returns(file):
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


# ---- Choosing the format --------------------------------------------------------------------------------------------


def _format(path: pathlib.Path, quoted: bool | None) -> Format:
    if _delimiter(path, quoted) == ',':
        return _csv_format(path)
    quoted = _tsv_is_quoted(path) if quoted is None else quoted
    return Format('\t', quoted=quoted, returns=quoted and _holds(path, [_RETURN_WITHIN_LINE])[0])


def _delimiter(path: pathlib.Path, quoted: bool | None) -> str:
    """The delimiter, from the suffix of the file; a .txt file may use either, so its first line decides."""
    kind = streams.suffix(path, ('.tsv', '.txt', '.csv'))
    if kind != '.txt' or quoted is not None:
        return ',' if kind in ('.csv', '') else '\t'
    with streams.open_text(path) as file:
        first = next(lines(file, path), b'')
    return ',' if b',' in first and b'\t' not in first else '\t'


# In RFC 4180, a quotation mark inside a quoted field is doubled or ends the field. So a valid file never has one that
# follows a backslash and precedes ordinary text, nor one that opens a field after a comma and spaces. Beside each
# pattern are bytes that all its matches contain, because a search for plain bytes is faster.
_BEHIND_BACKSLASH = (b'\\"', rb'\\"[^",\r\n]')
_RETURN_WITHIN_LINE = (b'\r', rb'\r[^\n]')
_BEHIND_BLANKS = (b' "', rb', +"[^",\r\n]'), (b'\n ', rb'\n +"[^",\r\n]')


def _csv_format(path: pathlib.Path) -> Format:
    """RFC 4180, unless the file shows signs of another convention; then the first format in which the file parses."""
    returns, has_escapes, *has_blanks = _holds(path, [_RETURN_WITHIN_LINE, _BEHIND_BACKSLASH, *_BEHIND_BLANKS])
    forms = [Format(',', padded=True, returns=returns)] * any(has_blanks) + [Format(',', returns=returns)]
    forms += [dataclasses.replace(form, escaped=True) for form in forms] * has_escapes
    if len(forms) == 1:
        return forms[0]
    return next((form for form in forms if _parses(path, form)), forms[0])


def _holds(path: pathlib.Path, wanted: Sequence[tuple[bytes, bytes]]) -> list[bool]:
    """Whether the file contains a match of each pattern; each pattern comes with bytes that every match contains."""
    patterns, found = [(part, re.compile(pattern)) for part, pattern in wanted], [False] * len(wanted)
    with streams.open_text(path) as file:
        earlier = b''
        while not all(found) and (piece := file.read(streams.BUFFER_BYTES)):
            piece = earlier + piece
            for i, (part, pattern) in enumerate(patterns):
                # '^' must match only at the start of the file, so later pieces are not searched from their first byte.
                found[i] = found[i] or (part in piece and pattern.search(piece, len(earlier) > 0) is not None)
            earlier = piece[-_EARLIER_BYTES:]
    return found


def _parses(path: pathlib.Path, form: Format) -> bool:
    """Whether the whole file is a table in that format."""
    try:
        return len({len(fields) for _, fields in _parse(path, form, 'replace')}) <= 1
    except csv.Error:
        return False


def _doubled(line: str) -> str:
    r"""The line with `\"` replaced by `""`; each pair of backslashes before a quotation mark becomes one backslash."""
    if '\\"' not in line:
        return line
    return re.sub(r'(\\+)"', lambda found: '\\' * (len(found[1]) // 2) + '"' * (1 + len(found[1]) % 2), line)


def _tsv_is_quoted(path: pathlib.Path) -> bool:
    """Whether a TSV file quotes fields.

    It does if every field that begins with a quotation mark is a well-formed quoted field and at least one of these
    holds: without quoting, records would have different numbers of fields; a quoted field contains a doubled quotation
    mark or a carriage return; all column names are quoted; or exactly those fields are quoted that contain a comma, as
    spreadsheets write them.
    """
    if not _holds(path, [(b'"', rb'(?:^|[\t\r\n])"')])[0]:
        return False
    signs = _quoting_signs(path)
    if signs.is_ragged or (signs.is_open and (signs.is_needed or signs.in_names)):
        is_quoted = _parses(path, Format('\t', returns=_holds(path, [_RETURN_WITHIN_LINE])[0]))
    else:
        is_quoted = not signs.is_open and (signs.is_needed or signs.in_names or signs.for_commas)
    how = 'are read as quoted fields' if is_quoted else 'are read unchanged, including the quotation marks'
    tqdm.tqdm.write(f'{path}: fields that begin with a quotation mark {how}', file=sys.stderr)
    return is_quoted


@dataclasses.dataclass(frozen=True)
class _Signs:
    """Properties of a TSV file that is read without quoting.

    Attributes:
      is_ragged: the records have different numbers of fields.
      is_open: some field begins with a quotation mark but does not end as a quoted field should.
      is_needed: some quoted field contains a doubled quotation mark or a carriage return.
      in_names: all column names are quoted.
      for_commas: exactly those fields are quoted that contain a comma.
    """

    is_ragged: bool
    is_open: bool
    is_needed: bool
    in_names: bool
    for_commas: bool


def _quoting_signs(path: pathlib.Path) -> _Signs:
    widths: set[int] = set()
    seen: Counter[str] = Counter()
    in_names = None
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


# ---- Error messages -------------------------------------------------------------------------------------------------


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
            f'{path} separates its column names with {other!r}, not with commas: {names[0][:80]!r}. Write the file '
            'with commas, or with tabs and a name that ends in .tsv'
        )


def _mixed_ends(path: pathlib.Path) -> ConfigError:
    return ConfigError(
        f'the first lines of {path} end with a carriage return, and later ones with a line feed: use the same line '
        "ending everywhere, for example with tr '\\r' '\\n'"
    )


def _ragged(path: pathlib.Path, line: int, fields: Sequence[str], names: Sequence[str], form: Format) -> str:
    message = f'line {line} of {path} has {len(fields)} fields instead of {len(names)} ({", ".join(names)})'
    if not form.quoted or len(fields) < len(names):
        return message
    mark = 'tabs' if form.delimiter == '\t' else 'commas'
    return f'{message}. Fields that contain {mark} must be quoted, as csv.writer and pandas write them'


def _not_utf8(path: pathlib.Path) -> str:
    with streams.open_text(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f'{path} is not UTF-8: line {number}: {error}. If it is Latin-1, run iconv -f LATIN1 -t UTF-8'
    return f'{path} is not UTF-8'


def _unparsed(path: pathlib.Path, form: Format, first: int, error: csv.Error) -> str:
    """Explains why the record that begins on line `first` does not parse; mostly, a quotation mark is not closed."""
    start, end, behind = _last_quoted_field(path, form, first)
    if start is None:
        return f'line {first} of {path} cannot be parsed: {error}'
    cure = 'Double each quotation mark inside a field ("")'
    if end is None:
        return f'line {start} of {path} opens a quotation mark that is never closed. {cure}, or delete it'
    return (
        f'line {start} of {path} opens a quotation mark, and the closing quotation mark on line {end} is followed by '
        f'{behind!r} instead of the end of the field. {cure}'
    )


def _last_quoted_field(path: pathlib.Path, form: Format, first: int) -> tuple[int | None, int | None, str]:
    """Finds the invalid quoted field of the record that begins on line `first`, or else its last quoted field.

    Returns:
      The line on which the field opens (None if the record has no quoted field), the line on which it closes (None if
      it does not close), and the text that follows its closing quotation mark.
    """
    start: int | None = None
    end: int | None = None
    blanks = ' ' * form.padded
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
    """The index of the quotation mark that closes the field containing index `at`; −1 if this line has none."""
    while (at := line.find('"', at)) >= 0 and line.startswith('"', at + 1):
        at += 2
    return at


def _lines_from(path: pathlib.Path, form: Format, first: int) -> Iterable[tuple[int, str]]:
    with streams.open_text(path) as file:
        text = _text_lines(file, form, 'replace')  # bound to a name so that it stays alive until the file is closed
        for number, line in enumerate(text, start=1):
            if number >= first:
                yield number, line
