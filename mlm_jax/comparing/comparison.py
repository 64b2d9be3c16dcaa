"""A comparison of the runs of several configurations: means over seeds, differences paired by seed, and a picture.

The seed decides the initial parameters, the order of the rows and the masks. Two runs with the same seed share as many
of these as their configurations allow, so the difference of the two runs varies less than each of their losses. The
standard error of a mean difference is therefore computed from the paired differences: s / √n, with n − 1 degrees of
freedom.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mlm_jax.files import markdown, pictures
from mlm_jax.files.errors import ConfigError
from mlm_jax.files.statistics import mean_and_error, plus_minus

# Name of a budget → what it counts.
UNITS = {'flops': 'FLOPs', 'steps': 'optimizer steps', 'time': 'seconds of training steps'}


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
    """

    name: str
    total_steps: int
    tokens: int
    flops: float
    step_cost: float
    runs: Mapping[int, Sequence[Mapping[str, float]]]
    train_seconds: Mapping[int, float]


def choose_metric(entry: Entry, wanted: str = '') -> str:
    """The metric by which an entry is compared.

    Args:
      entry: with at least one run.
      wanted: 'eval/NAME' or 'NAME'. '' means `eval/masked_nll` (nats per masked token, which has the same meaning for
        every objective) if the runs have it, and otherwise `eval/loss`.

    Raises:
      ConfigError: when a run does not have the metric.
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
    """Label → the numbers of a configuration for the table, the picture and the JSON file.

    Args:
      entries: by label; all with the same seeds. The others are compared with the first.
      metric: as for `choose_metric`.

    Raises:
      ConfigError: when a run does not have the metric, or not at its last step.
    """
    first: dict[int, float] | None = None
    summary: dict[str, dict] = {}
    for label, entry in entries.items():
        name = choose_metric(entry, metric)
        points = {
            seed: {line['step']: line[name] for line in lines if name in line} for seed, lines in entry.runs.items()
        }
        lost = [seed for seed, by_step in points.items() if entry.total_steps not in by_step]
        if lost:
            raise ConfigError(
                f'the log of {label}, seed {lost[0]}, lacks the evaluation at its end, step {entry.total_steps:,}: '
                'delete the directory of this run to train it again'
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
    """A Markdown table with a row for each configuration.

    Args:
      summary: what `summarize` returns.
    """
    first = next(iter(summary))
    titles = ['', _metric_title(summary), f'− {first}, paired', 'steps', 'tokens', 'FLOPs', 'training seconds']
    rows = []
    for label, line in summary.items():
        difference = plus_minus(line['difference'], line['difference_standard_error'], '+.4f')
        rows.append(
            [
                label,
                plus_minus(line['mean'], line['standard_error'], '.4f'),
                '' if label == first else difference,
                f'{line["steps"]:,}',
                f'{line["tokens"] / 1e6:,.2f} M',
                f'{line["flops"]:.3g}',
                f'{line["train_seconds"]:,.0f}',
            ]
        )
    return markdown.table(titles, rows)


def _metric_title(summary: Mapping[str, dict]) -> str:
    names = dict.fromkeys(line['metric'] for line in summary.values())
    return ', '.join(names) + (' (nats)' if all(name.endswith(('loss', 'nll')) for name in names) else '')


def draw(summary: Mapping[str, dict], budget: str, path: pathlib.Path) -> None:
    """Draws the metric against the part of the budget that is spent, with a band of ± one standard error.

    Each configuration has a color. The evaluation before the first step is left out, because its large loss would
    compress the scale for all others.

    Args:
      summary: what `summarize` returns.
      budget: a key of `UNITS`.
      path: of the PNG file.
    """
    figure = pictures.new_figure(7, 4.2)
    axes = figure.subplots()
    for i, (label, line) in enumerate(summary.items()):
        curve = line['curve']
        used = [place for place, step in enumerate(curve['step']) if step > 0]
        spent, mean = (np.array([curve[key][place] for place in used]) for key in ('spent', 'mean'))
        axes.plot(spent, mean, 'o-', color=f'C{i}', markersize=3, linewidth=1.2, label=pictures.plain_text(label))
        if line['standard_error'] is not None:
            error = np.array([curve['standard_error'][place] for place in used])
            axes.fill_between(spent, mean - error, mean + error, color=f'C{i}', alpha=0.2, linewidth=0)
    seeds = len(next(iter(summary.values()))['by_seed'])
    axes.set(
        xlabel=UNITS[budget],
        ylabel=_metric_title(summary),
        title=f'equal {UNITS[budget]}; {seeds} seed{"s" if seeds > 1 else ""}',
    )
    axes.grid(alpha=0.3)
    axes.legend()
    pictures.save(figure, path)
