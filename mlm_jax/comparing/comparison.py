"""Runs of several configurations laid beside each other: means over seeds, differences paired by seed, one picture.

The seed decides the initial parameters, the order of the rows and the masks. Two configurations under one seed share
what of these they have in common, so the difference of a pair varies less than the two losses do, and its standard
error is that of the mean difference: s / √n with n − 1 degrees of freedom.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mlm_jax.files.errors import ConfigError
from mlm_jax.files.pictures import plain_text
from mlm_jax.files.statistics import mean_and_error

# What is spent, by the name of the budget.
UNITS = {'flops': 'FLOPs', 'steps': 'optimizer steps', 'time': 'seconds of training steps'}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A configuration and the metrics of its runs.

    Attributes:
      name: the configuration, as on the command line.
      total_steps: optimizer steps of each run.
      tokens: source tokens of each run.
      flops: of the matmuls of each run.
      step_cost: what one step takes off the budget, in its unit.
      runs: seed → the lines of metrics.jsonl.
      train_seconds: seed → the time that the run really took, without compiling and evaluating.
    """

    name: str
    total_steps: int
    tokens: int
    flops: float
    step_cost: float
    runs: Mapping[int, Sequence[Mapping[str, float]]]
    train_seconds: Mapping[int, float]


def choose_metric(entry: Entry, wanted: str = '') -> str:
    """The metric to compare `entry` by.

    Args:
      entry: with at least one run.
      wanted: 'eval/NAME' or 'NAME'. '' takes `eval/masked_nll`, the nats per masked token that mean the same under
        every objective, where the runs have it, and `eval/loss` elsewhere.

    Raises:
      ConfigError: when a run lacks the metric that is wanted.
    """
    names = set.intersection(*(set().union(*lines) for lines in entry.runs.values()))
    held_out = sorted(name for name in names if name.startswith('eval/'))
    if not wanted:
        return 'eval/masked_nll' if 'eval/masked_nll' in held_out else 'eval/loss'
    wanted = wanted if '/' in wanted else f'eval/{wanted}'
    if wanted not in held_out:
        raise ConfigError(f'--metric={wanted}: the runs of {entry.name} have {", ".join(held_out)}')
    return wanted


def summarize(entries: Mapping[str, Entry], metric: str = '') -> dict[str, dict]:
    """Label → what the table, the picture and the JSON file say of a configuration.

    Args:
      entries: by label; all with the same seeds. The first is what the others are compared with.
      metric: as for `choose_metric`.
    """
    first, summary = None, {}
    for label, entry in entries.items():
        name = choose_metric(entry, metric)
        points = {
            seed: {line['step']: line[name] for line in lines if name in line} for seed, lines in entry.runs.items()
        }
        lost = [seed for seed, by_step in points.items() if entry.total_steps not in by_step]
        if lost:
            raise ConfigError(
                f'the log of {label}, seed {lost[0]}, lacks the evaluation at its end, step {entry.total_steps:,}: '
                'delete the directory of that run to train it again'
            )
        final = {seed: by_step[entry.total_steps] for seed, by_step in points.items()}
        first = final if first is None else first
        steps = sorted(set.intersection(*(set(by_step) for by_step in points.values())))
        curve = [mean_and_error([by_step[step] for by_step in points.values()]) for step in steps]
        mean, error = mean_and_error(list(final.values()))
        difference, difference_error = mean_and_error([final[seed] - first[seed] for seed in final])
        summary[label] = {
            'config': entry.name,
            'metric': name,
            'mean': mean,
            'standard_error': error,
            'difference': difference,
            'difference_standard_error': difference_error,
            'by_seed': {str(seed): value for seed, value in final.items()},
            'steps': entry.total_steps,
            'tokens': entry.tokens,
            'flops': entry.flops,
            'step_cost': entry.step_cost,
            'spent': entry.total_steps * entry.step_cost,
            'train_seconds': float(np.mean(list(entry.train_seconds.values()))),
            'curve': {
                'step': steps,
                'spent': [step * entry.step_cost for step in steps],
                'mean': [m for m, _ in curve],
                'standard_error': [e for _, e in curve],
            },
        }
    return summary


def markdown_table(summary: Mapping[str, dict]) -> str:
    """The table, a line for each configuration."""
    first = next(iter(summary))
    titles = ['', _metric_title(summary), f'− {first}, paired', 'steps', 'tokens', 'FLOPs', 'training seconds']
    rows = [titles, ['---', *['---:'] * (len(titles) - 1)]]
    for label, line in summary.items():
        rows.append(
            [
                label,
                _plus_minus(line['mean'], line['standard_error']),
                '' if label == first else _plus_minus(line['difference'], line['difference_standard_error'], '+'),
                f'{line["steps"]:,}',
                f'{line["tokens"] / 1e6:,.2f} M',
                f'{line["flops"]:.3g}',
                f'{line["train_seconds"]:,.0f}',
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    lines = (' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return ''.join(f'| {line} |\n' for line in lines)


def _metric_title(summary: Mapping[str, dict]) -> str:
    names = dict.fromkeys(line['metric'] for line in summary.values())
    return ', '.join(names) + (' (nats)' if all(name.endswith(('loss', 'nll')) for name in names) else '')


def _plus_minus(value: float, error: float | None, sign: str = '') -> str:
    return f'{value:{sign}.4f}' + ('' if error is None else f' ± {error:.4f}')


def draw(summary: Mapping[str, dict], budget: str, path: pathlib.Path) -> None:
    """Draws the metric against what was spent: a colour for each configuration, a band of ± one standard error.

    The evaluation before the first step is left out: it would press all others together.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state and no display

    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for colour, (label, line) in enumerate(summary.items()):
        curve = line['curve']
        used = [i for i, step in enumerate(curve['step']) if step > 0]
        spent, mean = (np.array([curve[key][i] for i in used]) for key in ('spent', 'mean'))
        axes.plot(spent, mean, 'o-', color=f'C{colour}', markersize=3, linewidth=1.2, label=plain_text(label))
        if line['standard_error'] is not None:
            error = np.array([curve['standard_error'][i] for i in used])
            axes.fill_between(spent, mean - error, mean + error, color=f'C{colour}', alpha=0.2, linewidth=0)
    seeds = len(next(iter(summary.values()))['by_seed'])
    axes.set(
        xlabel=UNITS[budget],
        ylabel=_metric_title(summary),
        title=f'equal {UNITS[budget]}; {seeds} seed{"s" if seeds > 1 else ""}',
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
