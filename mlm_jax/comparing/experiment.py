"""An experiment as data: a directory that says what was asked, how it was run, and what was measured.

    experiment.json    the question, the commands, and on what they ran; what the figure shows; a paragraph of notes
    metrics.json       tables of numbers, with names and units of columns and names of rows
    curves.jsonl       lines of metrics.jsonl, each with the `run` and the `seed` that it is of; optional
    figure.png         drawn from these; optional

`compare` writes this form, pages are made of it (`results_page.py`), and figures are drawn from it (`figures.py`).

A cell of a table is one of:

    4.595, "text", null                                   a number, a text, nothing
    [22, 23, 23]                                          the values of several seeds
    {"value": 79.5, "error": 0.8}                         a mean with its standard error or deviation, as the title
                                                          says; "by_seed" may hold the values, which are not shown
    {"low": 273, "high": 477}, also with "value"          a range; with a value, that and its range
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from mlm_jax.files import atomic, json_lines
from mlm_jax.files.errors import ConfigError

EXPERIMENT, METRICS, CURVES, FIGURE = 'experiment.json', 'metrics.json', 'curves.jsonl', 'figure.png'
_ENTRY = {'value', 'error', 'by_seed', 'of', 'low', 'high'}
# The keys of an entry that are shown, together.
_SHOWN = ({'value'}, {'value', 'error'}, {'low', 'high'}, {'value', 'low', 'high'})


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      name: its title.
      unit: of its numbers, such as 'ms'; '' where the name or the title of the table says it, or there is none.
      format: of its numbers, as Python's `format` takes it.
      x: the place of its numbers on the axis of a figure, if they are points of a line.
    """

    name: str
    unit: str = ''
    format: str = ','
    x: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: a name, and a cell for each column."""

    name: str
    values: tuple


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of an experiment.

    Attributes:
      name: by which pages and figures refer to it.
      title: what it shows, and of what its errors are; the text above it.
      columns: all but the first, which holds the names of the rows.
      rows: as many as there are.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def cell(self, row: str, column: str) -> tuple[Any, Column]:
        """The cell in a row and a column, by their names, with the column; ConfigError if there is none."""
        places = [i for i, c in enumerate(self.columns) if c.name == column]
        rows = [r for r in self.rows if r.name == row]
        if not places or not rows:
            raise ConfigError(f'table {self.name} has no row {row!r} with a column {column!r}')
        return rows[0].values[places[0]], self.columns[places[0]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What was asked, how it was run, and what was measured. What is not known is None, and nothing is made up.

    Attributes:
      title: a few words.
      question: a sentence.
      commands: as they are typed; each may have several lines.
      needs: what the commands need besides this repository, such as 'a download'; '' if nothing.
      settings: name → value, of what the commands do not say.
      commit: of the code.
      date: of the measurement, YYYY-MM-DD.
      hardware: with the number of devices or cores.
      versions: name of a library → its version.
      seeds: of the runs.
      notes: a paragraph about what the tables show; `{TABLE|ROW|COLUMN}` in it stands for that cell.
      not_run: what was not run; '' if there is nothing to say.
      tables: the numbers.
      figure: the panels of the figure, as `figures.py` draws them; none without a figure.
      alternative_text: of the figure, for those who do not see it.
      curves: the lines of curves.jsonl.
    """

    title: str
    question: str
    commands: tuple[str, ...] = ()
    needs: str = ''
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commit: str | None = None
    date: str | None = None
    hardware: str | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    notes: str = ''
    not_run: str = ''
    figure: tuple[Mapping[str, Any], ...] = ()
    alternative_text: str = ''
    tables: tuple[Table, ...] = ()
    curves: tuple[Mapping[str, Any], ...] = ()

    def table(self, name: str) -> Table:
        """The table with this name; ConfigError if there is none."""
        for table in self.tables:
            if table.name == name:
                return table
        raise ConfigError(
            f'{self.title}: there is no table {name!r}; there are {", ".join(t.name for t in self.tables)}'
        )


# Fields of `Experiment` that lie in files of their own.
_ELSEWHERE = ('tables', 'curves')
_KEYS = tuple(f.name for f in dataclasses.fields(Experiment) if f.name not in _ELSEWHERE)
# These a person may write into experiment.json after a program has made it.
_TEXTS = ('title', 'question', 'needs', 'notes', 'not_run', 'alternative_text')


def read(directory: pathlib.Path) -> Experiment:
    """The experiment in a directory.

    Raises:
      ConfigError: for a file that is missing or not of this form; the message says where and what.
    """
    path = directory / EXPERIMENT
    values = _read_object(path)
    _check_keys(values, _KEYS, ('title', 'question'), str(path))
    for key in _TEXTS:
        if not isinstance(values.get(key, ''), str):
            raise ConfigError(f'{path}: {key} must be a text')
    for key in ('commit', 'date', 'hardware'):
        if not isinstance(values.get(key), str | None):
            raise ConfigError(f'{path}: {key} must be a text, or null if it is not known')
    if (date := values.get('date')) and not re.fullmatch(r'\d{4}-\d\d-\d\d', date):
        raise ConfigError(f'{path}: date={date!r} must have the form YYYY-MM-DD')
    for key in ('commands', 'seeds', 'figure'):
        if not isinstance(values.setdefault(key, []), list):
            raise ConfigError(f'{path}: {key} must be a list')
        values[key] = tuple(values[key])
    for key in ('settings', 'versions'):
        if not isinstance(values.get(key, {}), dict):
            raise ConfigError(f'{path}: {key} must be an object of names and texts')
    tables = _read_tables(directory / METRICS)
    curves = tuple(_read_curves(directory / CURVES)) if (directory / CURVES).exists() else ()
    return Experiment(**values, tables=tables, curves=curves)


def write(experiment: Experiment, directory: pathlib.Path) -> None:
    """Writes experiment.json, metrics.json and, if there are curves, curves.jsonl; each appears complete.

    Raises:
      ConfigError: when the experiment is not of this form.
    """
    for table in experiment.tables:
        _check_table(table, table.name)
    described = {key: getattr(experiment, key) for key in _KEYS}
    atomic.write_bytes(directory / EXPERIMENT, _encoded(json.dumps(described, indent=2, ensure_ascii=False)))
    atomic.write_bytes(directory / METRICS, _encoded(_tables_as_json(experiment.tables)))
    if experiment.curves:
        lines = '\n'.join(json.dumps(line, ensure_ascii=False, allow_nan=False) for line in experiment.curves)
        atomic.write_bytes(directory / CURVES, _encoded(lines))


def with_words_of(made: Experiment, directory: pathlib.Path, generated: Collection[str] = ()) -> Experiment:
    """The experiment with the texts of an earlier one in `directory`, if there is one: a person may have written them.

    Args:
      made: the experiment.
      directory: of the earlier one.
      generated: texts that no person has written.

    Raises:
      ConfigError: when the earlier one is damaged.
    """
    if not (directory / EXPERIMENT).exists():
        return made
    old = read(directory)
    texts = {key: getattr(old, key) for key in _TEXTS}
    return dataclasses.replace(made, **{key: text for key, text in texts.items() if text and text not in generated})


def format_cell(cell: Any, number_format: str = ',') -> str:
    """The text of a cell; see the docstring of this module for its forms.

    Args:
      cell: of a form that `read` accepts.
      number_format: of its numbers.
    """
    if cell is None:
        return ''
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list | tuple):
        return ' / '.join(format_number(value, number_format) for value in cell)
    if not isinstance(cell, Mapping):
        return format_number(cell, number_format)
    shown = format_number(cell['value'], number_format) if 'value' in cell else ''
    if cell.get('error') is not None:
        shown += f' ± {format_number(cell["error"], number_format.lstrip("+"))}'
    if 'of' in cell:
        shown += f' ({len(cell["by_seed"])} of {cell["of"]} seeds)'
    if 'low' in cell:
        between = ' … '.join(format_number(cell[key], number_format) for key in ('low', 'high'))
        shown = f'{shown} ({between})' if shown else between
    return shown


def format_number(value: float, number_format: str) -> str:
    """A number with a true minus sign."""
    return f'{value:{number_format}}'.replace('-', '−') if value < 0 else f'{value:{number_format}}'


def numbers(cell: Any) -> list[float]:
    """The numbers that a cell holds, shown or not."""
    if isinstance(cell, Mapping):
        return [number for value in cell.values() for number in numbers(value)]
    if isinstance(cell, list | tuple):
        return [number for value in cell for number in numbers(value)]
    return [cell] if _is_number(cell) else []


def _encoded(text: str) -> bytes:
    return f'{text}\n'.encode()


def _tables_as_json(tables: tuple[Table, ...]) -> str:
    """JSON with a line for each column and each row, which people can read and edit."""

    def one_line(part: Any) -> str:
        return json.dumps(part, ensure_ascii=False, allow_nan=False)

    parts = []
    for table in tables:
        columns = (one_line(_without_defaults(column)) for column in table.columns)
        rows = (one_line(dataclasses.asdict(row)) for row in table.rows)
        parts.append(
            f'  {{\n    "name": {one_line(table.name)},\n    "title": {one_line(table.title)},\n'
            '    "columns": [\n      ' + ',\n      '.join(columns) + '\n    ],\n'
            '    "rows": [\n      ' + ',\n      '.join(rows) + '\n    ]\n  }'
        )
    return '{"tables": [\n' + ',\n'.join(parts) + '\n]}'


def _without_defaults(column: Column) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(Column)}
    return {key: value for key, value in dataclasses.asdict(column).items() if value != defaults[key]}


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror}') from None
    except ValueError as error:
        raise ConfigError(f'{path} is not JSON: {error}') from None
    if not isinstance(value, dict):
        raise ConfigError(f'{path} does not hold a JSON object')
    return value


def _check_keys(values: Any, known: tuple[str, ...], required: tuple[str, ...], where: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f'{where}: expected an object with {", ".join(known)}')
    if strange := [key for key in values if key not in known]:
        raise ConfigError(f'{where}: there is no key {strange[0]!r}; there are {", ".join(known)}')
    if missing := [key for key in required if key not in values]:
        raise ConfigError(f'{where}: {missing[0]} is missing')


def _read_tables(path: pathlib.Path) -> tuple[Table, ...]:
    values = _read_object(path)
    _check_keys(values, ('tables',), ('tables',), str(path))
    tables = []
    for i, entry in enumerate(values['tables']):
        where = f'{path}, table {entry.get("name", i) if isinstance(entry, dict) else i}'
        keys = tuple(f.name for f in dataclasses.fields(Table))
        _check_keys(entry, keys, keys, where)
        for column in entry['columns']:
            _check_keys(column, tuple(f.name for f in dataclasses.fields(Column)), ('name',), f'{where}, a column')
        for row in entry['rows']:
            _check_keys(row, ('name', 'values'), ('name', 'values'), f'{where}, a row')
        table = Table(
            entry['name'],
            entry['title'],
            tuple(Column(**column) for column in entry['columns']),
            tuple(Row(row['name'], tuple(row['values'])) for row in entry['rows']),
        )
        _check_table(table, where)
        tables.append(table)
    names = [table.name for table in tables]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f'{path}: two tables are named {twice[0]!r}')
    return tuple(tables)


def _check_table(table: Table, where: str) -> None:
    for kind, names in (('column', [c.name for c in table.columns]), ('row', [r.name for r in table.rows])):
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f'{where}: two {kind}s are named {twice[0]!r}')
    for row in table.rows:
        if len(row.values) != len(table.columns):
            raise ConfigError(f'{where}, row {row.name!r}: {len(row.values)} values for {len(table.columns)} columns')
        for cell, column in zip(row.values, table.columns, strict=True):
            if not _is_cell(cell):
                raise ConfigError(f'{where}, row {row.name!r}, column {column.name!r}: {cell!r} is no cell')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_cell(cell: Any) -> bool:
    if isinstance(cell, Mapping):
        shown = {key for key in ('value', 'error', 'low', 'high') if cell.get(key) is not None}
        by_seed = cell.get('by_seed', {})
        values = [cell[key] for key in shown] + list(by_seed.values() if isinstance(by_seed, Mapping) else [None])
        return cell.keys() <= _ENTRY and shown in _SHOWN and all(map(_is_number, values))
    if isinstance(cell, list | tuple):
        return bool(cell) and all(map(_is_number, cell))
    return cell is None or isinstance(cell, str) or _is_number(cell)


def _read_curves(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = []
    for number, line in json_lines.records(path.read_bytes().splitlines(keepends=True), path):
        if not isinstance(line, dict) or not _is_number(line.get('step')):
            raise ConfigError(f'{path}, line {number}: expected an object with the number "step"')
        lines.append(line)
    return lines
