"""Joins the parts of a comparison whose seeds were run apart, such as on several machines, into one experiment."""

import dataclasses
import datetime
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlm_jax.comparing import comparison
from mlm_jax.comparing.experiment import Experiment, Row, Table
from mlm_jax.files.errors import ConfigError


def join(parts: Mapping[str, Experiment]) -> Experiment:
    """The experiment of all seeds: means, standard errors and paired differences are those of one comparison.

    The words of a person are those of the first part.

    Args:
      parts: path → an experiment that `compare` has written.

    Raises:
      ConfigError: when the parts share a seed, or are not of the same configurations, data and measures.
    """
    if len(parts) < 2:
        raise ConfigError(f'--join={", ".join(parts)}: give two directories or more, --join=DIRECTORY for each')
    for pair in itertools.combinations(parts, 2):
        _check_alike(pair, parts)
    experiments = list(parts.values())
    first = experiments[0]
    return dataclasses.replace(
        first,
        commands=tuple(dict.fromkeys(command for part in experiments for command in part.commands)),
        commit=_together(part.commit for part in experiments),
        date=max((part.date for part in experiments if part.date), default=None, key=datetime.date.fromisoformat),
        hardware=_together(part.hardware for part in experiments),
        versions={
            name: _together(part.versions.get(name) for part in experiments) or ''
            for name in dict.fromkeys(name for part in experiments for name in part.versions)
        },
        seeds=tuple(seed for part in experiments for seed in part.seeds),
        tables=tuple(_join_tables(parts, table.name) for table in first.tables),
        curves=tuple(line for part in experiments for line in part.curves),
    )


def _together(texts: Iterable[str | None]) -> str | None:
    """Different texts, 'one and other', also of parts that were joined before; None if none is known."""
    return ' and '.join(dict.fromkeys(one for text in texts if text for one in text.split(' and '))) or None


def _check_alike(pair: tuple[str, str], parts: Mapping[str, Experiment]) -> None:
    first, second = (parts[path] for path in pair)
    both = f'{pair[0]} and {pair[1]}'
    if shared := set(first.seeds) & set(second.seeds):
        raise ConfigError(
            f'{both} both have seed {min(shared)}: run each seed in one of them only, or leave one of them out'
        )
    different = [
        f'  {key}: {first.settings.get(key)} in {pair[0]}, {second.settings.get(key)} in {pair[1]}'
        for key in dict.fromkeys((*first.settings, *second.settings))
        if first.settings.get(key) != second.settings.get(key)
    ]
    if different:
        raise ConfigError(f'{both} are not seeds of one comparison:\n' + '\n'.join(different))
    for one, other, path, elsewhere in ((first, second, *pair), (second, first, *reversed(pair))):
        for table in one.tables:
            if table.name not in [t.name for t in other.tables]:
                raise ConfigError(
                    f'{path} has {table.name}, and {elsewhere} does not: run the command of {elsewhere} with the same '
                    '--then, which measures what is missing'
                )
            columns = [column.name for column in table.columns]
            if columns != [column.name for column in other.table(table.name).columns]:
                raise ConfigError(
                    f'{both} do not compare the same in {table.name}: the columns of the one are {columns}'
                )


def _join_tables(parts: Mapping[str, Experiment], name: str) -> Table:
    tables = {path: part.table(name) for path, part in parts.items()}
    first = next(iter(tables.values()))
    num_seeds = sum(len(part.seeds) for part in parts.values())
    rows = []
    for row in dict.fromkeys(row.name for table in tables.values() for row in table.rows):
        cells = []
        for column in first.columns:
            found = {
                path: table.cell(row, column.name)[0] if row in [r.name for r in table.rows] else None
                for path, table in tables.items()
            }
            if (name, column.name) == (comparison.HELD_OUT, comparison.TRAINING):
                cells.append(_mean([(found[path], len(part.seeds)) for path, part in parts.items()]))
            else:
                cells.append(_join_cells(found, f'{name}, {row}, {column.name}', num_seeds))
        rows.append(Row(row, tuple(cells)))
    return Table(name, comparison.retitled(first.title, num_seeds), first.columns, tuple(rows))


def _mean(cells: Sequence[tuple[Any, int]]) -> float:
    """The mean over all seeds, of a mean and the number of its seeds from each part."""
    return math.fsum(value * seeds for value, seeds in cells) / sum(seeds for _, seeds in cells)


def _join_cells(found: Mapping[str, Any], where: str, num_seeds: int) -> Any:
    """A cell of each part as one: of the values of all seeds, or the value that all of them have."""
    known = [cell for cell in found.values() if cell is not None]
    if known and all(isinstance(cell, Mapping) and 'by_seed' in cell for cell in known):
        by_seed = {int(seed): value for cell in known for seed, value in cell['by_seed'].items()}
        return comparison.summary_cell(by_seed, num_seeds)
    (path, first), *others = found.items()
    for other, cell in others:
        if cell != first:
            raise ConfigError(
                f'{where}: {first} in {path}, {cell} in {other}. Seeds are joined where all else is the same; with '
                '--budget=time, lengths follow from speeds that were measured in each place'
            )
    return first
