"""The figure of an experiment (`experiment.py`), drawn from its data: panels, of which several stand side by side.

A panel is an object in the list `figure` of experiment.json:

    {"curves": {"eval/loss": "held-out text"}, …}    metrics of curves.jsonl, with their names in the legend; a line for
                                                     each run, the mean over its seeds ± one standard error
    {"lines": "TABLE", …}                            a line for each row of a table over the columns that have an `x`
    {"bars": "TABLE", …}                             a group of bars for each row of a table, a bar for each column that
                                                     `columns` names; dots are the seeds

and `title`, `x_title`, `y_title`, `y_limits` ([low, high]), `levels` (name → y of a horizontal line). `x` names what of
curves.jsonl is the horizontal axis ("step"), and `x_from` is where that begins. `rows` chooses rows of a table.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlm_jax.comparing.experiment import Experiment, Row, Table
from mlm_jax.files import pictures
from mlm_jax.files.errors import ConfigError
from mlm_jax.files.statistics import mean_and_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COLUMNS = 3  # panels side by side
_OPTIONS = ('title', 'x_title', 'y_title', 'y_limits', 'levels', 'x', 'x_from', 'rows', 'columns')


def draw(entry: Experiment, path: pathlib.Path) -> None:
    """Draws the figure of an experiment.

    Args:
      entry: with at least one panel.
      path: of the PNG file.

    Raises:
      ConfigError: for a panel that is not of this form, or that names a table, row or metric that there is not.
    """
    kinds = [kind_of(panel) for panel in entry.figure]
    columns = min(len(kinds), MOST_COLUMNS)
    lines = math.ceil(len(kinds) / columns)
    figure = pictures.new_figure(7 if len(kinds) == 1 else 5.5 * columns, 4.2 * lines)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid[len(kinds) :]:
        axes.remove()
    for axes, panel, kind in zip(grid, entry.figure, kinds, strict=False):
        _PANELS[kind](axes, panel, entry)
        for name, y in panel.get('levels', {}).items():
            axes.axhline(y, color='gray', linestyle='--', linewidth=1, label=pictures.plain_text(name))
        titles = {'title': 'title', 'x_title': 'xlabel', 'y_title': 'ylabel', 'y_limits': 'ylim'}
        axes.set(**{title: panel[key] for key, title in titles.items() if key in panel})
        axes.grid(axis='y' if kind == 'bars' else 'both', alpha=0.3)
    legends = [axes.get_legend_handles_labels() for axes in grid[: len(kinds)]]
    if len(legends) > 1 and all(labels == legends[0][1] for _, labels in legends):
        columns = _legend_columns(legends[0][1], figure.get_figwidth())
        more_lines = math.ceil(len(legends[0][1]) / columns) - 1
        figure.set_figheight(figure.get_figheight() + 0.25 * more_lines)
        figure.legend(*legends[0], loc='outside lower center', ncols=columns)
    else:
        for axes in grid[: len(kinds)]:
            axes.legend(fontsize=8)
    pictures.save(figure, path)


def _legend_columns(labels: Sequence[str], inches: float) -> int:
    """How many columns of a legend surely fit side by side: 0.09 inches a character, and 0.8 for its line."""
    return max(1, min(len(labels), int(inches / (0.8 + 0.09 * max(map(len, labels))))))


def kind_of(panel: Mapping[str, Any]) -> str:
    """What a panel shows, a key of it; ConfigError for a panel that is not of its form."""
    kinds = [kind for kind in _PANELS if kind in panel]
    if len(kinds) != 1:
        raise ConfigError(f'a panel of a figure has one of {", ".join(_PANELS)}, and this one has {", ".join(panel)}')
    if strange := [key for key in panel if key not in (*_OPTIONS, *kinds)]:
        raise ConfigError(f'a panel of a figure has no {strange[0]!r}; there are {", ".join(_OPTIONS)}')
    return kinds[0]


def _draw_curves(axes: 'Axes', panel: Mapping[str, Any], entry: Experiment) -> None:
    runs = list(dict.fromkeys(line.get('run', '') for line in entry.curves))
    color = 0
    for metric, title in panel['curves'].items():
        for run in runs:
            points = _points(entry, run, metric, panel.get('x', 'step'), panel.get('x_from'))
            if not points:
                continue
            name = ', '.join(filter(None, (run, title)))
            x_N, mean_N, error_N = (np.array(values, float) for values in zip(*points, strict=True))
            axes.plot(x_N, mean_N, 'o-', color=f'C{color}', markersize=3, label=pictures.plain_text(name))
            axes.fill_between(x_N, mean_N - error_N, mean_N + error_N, color=f'C{color}', alpha=0.2, linewidth=0)
            color += 1
    if not color:
        raise ConfigError(f'{entry.title}: curves.jsonl has nothing of {", ".join(panel["curves"])}')


def _points(
    entry: Experiment, run: str, metric: str, x: str, x_from: float | None
) -> list[tuple[float, float, float | None]]:
    """x, mean and standard error over the seeds of a run, where all of its seeds have the metric."""
    lines = [line for line in entry.curves if line.get('run', '') == run and line.get(metric) is not None]
    num_seeds = len({line.get('seed') for line in lines})
    by_step: dict[float, list[Mapping]] = {}
    for line in lines:
        by_step.setdefault(line['step'], []).append(line)
    return [
        (there[0][x], *mean_and_error([line[metric] for line in there]))
        for _, there in sorted(by_step.items())
        if len(there) == num_seeds and (x_from is None or there[0][x] >= x_from)
    ]


def _draw_lines(axes: 'Axes', panel: Mapping[str, Any], entry: Experiment) -> None:
    from matplotlib.ticker import MaxNLocator

    table = entry.table(panel['lines'])
    places = [i for i, column in enumerate(table.columns) if column.x is not None]
    if not places:
        raise ConfigError(f'{entry.title}: no column of table {table.name} has an x')
    if all(float(table.columns[place].x or 0).is_integer() for place in places):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for i, row in enumerate(rows_of(table, panel)):
        shown = [place for place in places if row.values[place] is not None]
        x_N = np.array([table.columns[place].x for place in shown], float)
        values = [_value_and_error(row.values[place]) for place in shown]
        axes.errorbar(
            x_N, [value for value, _ in values], [error or 0.0 for _, error in values],
            color=f'C{i}', marker='o', markersize=3, capsize=2, label=pictures.plain_text(row.name),
        )  # fmt: skip


def _draw_bars(axes: 'Axes', panel: Mapping[str, Any], entry: Experiment) -> None:
    table, columns = entry.table(panel['bars']), panel['columns']
    rows, width = rows_of(table, panel), 0.8 / len(columns)
    for i, column in enumerate(columns):
        for place, row in enumerate(rows):
            cell, _ = table.cell(row.name, column)
            if cell is None:
                continue
            value, error = _value_and_error(cell)
            x = place + (i - (len(columns) - 1) / 2) * width
            label = pictures.plain_text(column) if place == 0 else None
            axes.bar(x, value, 0.9 * width, yerr=error, color=f'C{i}', alpha=0.6, capsize=2, label=label)
            dots = list(cell.get('by_seed', {}).values()) if isinstance(cell, Mapping) else []
            axes.plot([x] * len(dots), dots, '.', color='black', markersize=3)
    names = [pictures.plain_text(row.name) for row in rows]
    axes.set_xticks(range(len(rows)), names, fontsize=8, rotation=20, ha='right')


def rows_of(table: Table, panel: Mapping[str, Any]) -> list[Row]:
    """The rows of a table that a panel shows; ConfigError for one that there is not."""
    wanted = panel.get('rows')
    rows = [row for row in table.rows if wanted is None or row.name in wanted]
    if wanted is not None and len(rows) < len(wanted):
        missing = [name for name in wanted if name not in {row.name for row in rows}]
        raise ConfigError(f'table {table.name} has no row {missing[0]!r}')
    return rows


def _value_and_error(cell: Any) -> tuple[float, float | None]:
    """What is drawn of a cell: its value, the mean of several seeds, or the middle of a range."""
    if isinstance(cell, Mapping):
        value = cell['value'] if 'value' in cell else (cell['low'] + cell['high']) / 2
        return value, cell.get('error')
    return mean_and_error(cell) if isinstance(cell, list | tuple) else (cell, None)


_PANELS: dict[str, Callable] = {'curves': _draw_curves, 'lines': _draw_lines, 'bars': _draw_bars}
