"""A comparison of the runs of several configurations: means over seeds, and differences paired by seed.

The seed decides the initial parameters, the order of the rows and the masks. Two runs with the same seed share as many
of these as their configurations allow, so the difference of the two runs varies less than each of their losses. The
standard error of a mean difference is therefore computed from the paired differences: s / √n, with n − 1 degrees of
freedom.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mlm_jax.comparing.budgets import UNITS
from mlm_jax.comparing.experiment import Column, Row, Table
from mlm_jax.files.errors import ConfigError
from mlm_jax.files.statistics import mean_and_error

HELD_OUT = 'held_out'  # the name of the table of the pretraining metric
TRAINING = 'training'  # the name of its column of measured times, means over the seeds
_EVALUATIONS = ('eval/', 'eval_ema/')  # how the names of the metrics of evaluations begin


_OF_ONE_SEED = 'values of a single seed of pretraining, chance included.'
_OF_SEEDS = 'means ± standard errors over the seeds of pretraining; differences are paired by seed.'


def _what_cells_are(num_seeds: int) -> str:
    return _OF_ONE_SEED if num_seeds == 1 else _OF_SEEDS


def retitled(title: str, num_seeds: int) -> str:
    """The title of a table of one or more seeds as that of the same table of `num_seeds` seeds."""
    for said in (_OF_ONE_SEED, _OF_SEEDS):
        title = title.replace(said, _what_cells_are(num_seeds))
        title = title.replace(_sentence(said), _sentence(_what_cells_are(num_seeds)))
    return title


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A configuration and the metrics of its runs.

    Attributes:
      name: the configuration, as on the command line.
      total_steps: optimizer steps of each run.
      tokens: tokens of the text that each run reads.
      flops: FLOPs of the matrix products of each run.
      step_cost: the cost of one step, in the unit of the budget.
      runs: seed → the lines of metrics.jsonl.
      train_seconds: seed → the measured time of the run, without compilation and evaluations.
      repeats: how often a row holds each token (`masking.repeats`). Where that differs, held-out losses do not compare:
        a masked copy can be read from the others.
    """

    name: str
    total_steps: int
    tokens: int
    flops: float
    step_cost: float
    runs: Mapping[int, Sequence[Mapping[str, float]]]
    train_seconds: Mapping[int, float]
    repeats: int = 1


def choose_metric(entry: Entry, wanted: str = '') -> str:
    """The metric by which an entry is compared.

    Args:
      entry: with at least one run.
      wanted: 'eval/NAME' or 'NAME', or 'eval_ema/NAME' of moving averages of the parameters. '' means `eval/masked_nll`
        (nats per masked token, which has the same meaning for every objective) if the runs have it, and otherwise
        `eval/loss`.

    Raises:
      ConfigError: when a run does not have the metric.
    """
    names = set.intersection(*(set().union(*lines) for lines in entry.runs.values()))
    held_out = sorted(name for name in names if name.startswith(_EVALUATIONS))
    if not wanted:
        return 'eval/masked_nll' if 'eval/masked_nll' in held_out else 'eval/loss'
    wanted = _full_name(wanted)
    if wanted not in held_out:
        raise ConfigError(f'--metric={wanted}: the runs of {entry.name} have {", ".join(held_out)}')
    return wanted


def _full_name(metric: str) -> str:
    return metric if '/' in metric else f'eval/{metric}'


def check_metric(wanted: str, names: Collection[str], has_average: bool) -> None:
    """Raises ConfigError for a metric, as `choose_metric` takes it, that runs will not have.

    Args:
      wanted: the metric.
      names: of the metrics of an evaluation, without 'eval/'.
      has_average: whether moving averages of the parameters are evaluated, too.
    """
    group, _, name = _full_name(wanted).partition('/')
    base = name.rpartition('/')[2]  # of a mixture, each source has its own ones
    base = 'blimp' if base.startswith('blimp_') else base  # and BLiMP one for each field
    if group not in (('eval', 'eval_ema') if has_average else ('eval',)) or base not in names:
        also = ', and the same of eval_ema/' if has_average else ''
        raise ConfigError(f'--metric={wanted}: the runs will have {", ".join(f"eval/{name}" for name in names)}{also}')


def final_values(label: str, entry: Entry, metric: str) -> dict[int, float]:
    """Seed → the metric at the end of its run; ConfigError when a log lacks it."""
    points = {
        seed: {line['step']: line[metric] for line in lines if metric in line} for seed, lines in entry.runs.items()
    }
    lost = [seed for seed, by_step in points.items() if entry.total_steps not in by_step]
    if lost:
        raise ConfigError(
            f'the log of {label}, seed {lost[0]}, lacks the evaluation at its end, step {entry.total_steps:,}: '
            'delete the directory of this run to train it again'
        )
    return {seed: by_step[entry.total_steps] for seed, by_step in points.items()}


def summary_cell(by_seed: Mapping[int, float], num_seeds: int = 0) -> dict[str, Any]:
    """A cell with the mean, its standard error (not of a single seed), and the values of the seeds.

    Where these are fewer than `num_seeds`, as others diverged or have no number, the cell says of how many they are.
    """
    mean, error = mean_and_error(list(by_seed.values()))
    shown = {'value': mean} if error is None else {'value': mean, 'error': error}
    some = {'of': num_seeds} if len(by_seed) < num_seeds else {}
    return {**shown, **some, 'by_seed': {str(seed): value for seed, value in by_seed.items()}}


def difference_cell(
    by_seed: Mapping[int, float], first: Mapping[int, float], num_seeds: int = 0
) -> dict[str, Any] | None:
    """As `summary_cell`, of the differences on the seeds that both have; None if there are none."""
    shared = {seed: value - first[seed] for seed, value in by_seed.items() if seed in first}
    return summary_cell(shared, num_seeds) if shared else None


def held_out_table(entries: Mapping[str, Entry], budget: str, metric: str = '') -> Table:
    """A row for each configuration: the metric at the end, its difference to the first one, and what a run costs.

    There is no difference where the runs of an objective lack the metric of the first one, or see copies of tokens.

    Args:
      entries: by label; all with the same seeds.
      budget: a key of `UNITS`.
      metric: as for `choose_metric`.

    Raises:
      ConfigError: when a run does not have the metric, or not at its last step.
    """
    names = {label: choose_metric(entry, metric) for label, entry in entries.items()}
    final = {label: final_values(label, entry, names[label]) for label, entry in entries.items()}
    first = next(iter(entries))
    title = ', '.join(dict.fromkeys(names.values()))
    nats = 'nats' if all(name.endswith(('loss', 'nll')) for name in names.values()) else ''
    columns = (
        Column(title, nats, '.4f'),
        Column(f'− {first}', nats, '+.4f'),
        Column('steps'),
        Column('tokens'),
        Column('FLOPs', '', '.3g'),
        Column(TRAINING, 's', ',.0f'),
        *([Column(UNITS[budget], 's', ',.0f')] if budget == 'time' else []),
    )
    rows = []
    for label, entry in entries.items():
        is_alike = entry.repeats == entries[first].repeats and names[label] == names[first]
        is_compared = label != first and is_alike
        difference = difference_cell(final[label], final[first]) if is_compared else None
        cells = [summary_cell(final[label]), difference, entry.total_steps, entry.tokens, entry.flops]
        cells.append(float(np.mean(list(entry.train_seconds.values()))))
        cells += [entry.total_steps * entry.step_cost] if budget == 'time' else []
        rows.append(Row(label, tuple(cells)))
    said = _what_does_not_compare(entries, names)
    spent = f'Equal {UNITS[budget]}' + (', with the length of a step measured in turn' if budget == 'time' else '')
    return Table(
        HELD_OUT,
        f'{spent}. Held out at the end of pretraining: {_what_cells_are(len(final[first]))}{said}',
        columns,
        tuple(rows),
    )


def _what_does_not_compare(entries: Mapping[str, Entry], names: Mapping[str, str]) -> str:
    """Sentences for the title of a table of metrics, whose `names` are by label; '' if all compare."""
    unlike = len({entry.repeats for entry in entries.values()}) > 1
    said = ' Models that read a token several times see copies of masked ones: their losses do not compare.' * unlike
    labels = {name: ', '.join(label for label in names if names[label] == name) for name in names.values()}
    if len(labels) > 1:
        means = '; '.join(f'{name} of {those}' for name, those in labels.items())
        said += f' Not all have the same metric, and these do not compare: {means}.'
    return said


def judged_table(
    name: str, title: str, unit: str, number_format: str, found: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> Table:
    """A row for each number that a judge has found, a column for each configuration and each difference to the first.

    Args:
      name: of the table.
      title: what was measured.
      unit: of its numbers.
      number_format: of its numbers, without a sign.
      found: label → seed → name of a number → the number. What was not found leaves its cell empty, and a cell of fewer
        seeds than others says so.
    """
    labels = list(found)
    by_name: dict[str, dict[str, dict[int, float]]] = {}
    for label, by_seed in found.items():
        for seed, values in by_seed.items():
            for key, value in values.items():
                if math.isfinite(value):
                    by_name.setdefault(key, {}).setdefault(label, {})[seed] = value
    columns = [Column(label, unit, number_format) for label in labels]
    columns += [Column(f'{label} − {labels[0]}', '', f'+{number_format}') for label in labels[1:]]
    rows, num_seeds = [], max(len(by_seed) for by_seed in found.values())
    for key, of_label in by_name.items():
        cells = [summary_cell(of_label[label], num_seeds) if label in of_label else None for label in labels]
        first = of_label.get(labels[0], {})
        cells += [difference_cell(of_label.get(label, {}), first, num_seeds) for label in labels[1:]]
        rows.append(Row(key, tuple(cells)))
    cells_are = _sentence(_what_cells_are(num_seeds))
    return Table(name, f'**{name}**: {title}. {cells_are}', tuple(columns), tuple(rows))


def curves(entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """The evaluations of all runs as lines of curves.jsonl, with what of the budget is `spent` by then."""
    lines = []
    for label, entry in entries.items():
        for seed, run in entry.runs.items():
            for line in run:
                held_out = {key: _known(value) for key, value in line.items() if key.startswith(_EVALUATIONS)}
                if held_out:
                    place = {'step': line['step'], 'spent': line['step'] * entry.step_cost}
                    lines.append({'run': label, 'seed': seed, **place, **held_out})
    return lines


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def panels(entries: Mapping[str, Entry], budget: str, metric: str, tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The panels of the figure: the held-out metric against the budget, and bars for each table of a few rows.

    The evaluation before the first step is left out, because its large loss would compress the scale for all others.

    Args:
      entries: by label.
      budget: a key of `UNITS`.
      metric: the name of the metric that the first one is compared by.
      tables: of judges.
    """
    least = min(entry.step_cost for entry in entries.values())
    shown: list[dict[str, Any]] = [
        {'curves': {metric: ''}, 'x': 'spent', 'x_from': least, 'x_title': UNITS[budget], 'y_title': metric},
    ]
    for table in tables:
        if 0 < len(table.rows) <= MOST_BARS:
            panel = {
                'bars': table.name,
                'columns': list(entries),
                'title': table.name.partition(':')[0],  # with its options, by which measures of a kind are told apart
                'y_title': table.columns[0].unit,
            }
            shown.append(panel)
    return shown


MOST_BARS = 12  # groups of bars that a panel has room for
