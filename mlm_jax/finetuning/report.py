"""The results of fine-tuning, task by task: what each model reached, with which setting, and how much seeds vary."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlm_jax.files import markdown as markdown_lib
from mlm_jax.files import pictures
from mlm_jax.files.statistics import mean_and_error, plus_minus
from mlm_jax.tasks.metrics import DECREASING, is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def summarize(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The setting of one task and one model with the best median over seeds, and what its seeds reached.

    Args:
      results: setting → for each finished seed what `finetune` wrote, with `metric`, `metrics`, `trivial` and `seed`;
        at least one setting with at least one seed.

    Returns:
      `setting`, `metric`, `trivial`, `seeds`, `best_seed`, and under `splits` split → metric → `median`, `mean`,
      `deviation` (the standard deviation; None for a single seed) and `by_seed`; under `settings_tried` setting →
      median.
    """
    metric = next(iter(results.values()))[0]['metric']
    medians = {
        setting: float(np.median([_value(run['metrics']['validation'][metric]) for run in runs]))
        for setting, runs in results.items()
    }
    best = next(iter(medians))
    for setting, median in medians.items():
        if is_better(metric, median, medians[best]):
            best = setting
    runs = results[best]
    splits: dict[str, dict[str, dict]] = {}
    for split, metrics in runs[0]['metrics'].items():
        splits[split] = {}
        for name in metrics:
            values = [_value(run['metrics'][split][name]) for run in runs]
            splits[split][name] = {
                'median': float(np.median(values)),
                'mean': float(np.mean(values)),
                'deviation': float(np.std(values, ddof=1)) if len(values) > 1 else None,
                'by_seed': {str(run['seed']): value for run, value in zip(runs, values, strict=True)},
            }
    return {
        'setting': best,
        'metric': metric,
        'trivial': runs[0]['trivial'],
        'seeds': [run['seed'] for run in runs],
        'best_seed': _best_seed(metric, runs),
        'splits': splits,
        'settings_tried': medians,
    }


def _value(number: float | None) -> float:
    return math.nan if number is None else number


def _best_seed(metric: str, runs: Sequence[Mapping]) -> int:
    best = runs[0]
    for run in runs[1:]:
        if is_better(metric, *(_value(r['metrics']['validation'][metric]) for r in (run, best))):
            best = run
    return best['seed']


def markdown(report: Mapping[str, Mapping[str, dict]]) -> str:
    """A Markdown table for each split that has targets.

    Metrics are multiplied by 100, except for errors (rmse, mae). The column `trivial` is the best of the simple answers
    that do not depend on the input. For two models or more, the last columns are differences from the last model,
    paired by seed, with standard errors.

    Args:
      report: task → model → what `summarize` returns.
    """
    models = list(dict.fromkeys(model for by_model in report.values() for model in by_model))
    entries = [entry for by_model in report.values() for entry in by_model.values()]
    others = {split for entry in entries for split, metrics in entry['splits'].items() if metrics} - {'validation'}
    return '\n'.join(_table(report, models, split) for split in ('validation', *sorted(others)))


def _table(report: Mapping[str, Mapping[str, dict]], models: Sequence[str], split: str) -> str:
    titles = [split, 'metric', 'trivial', *(f'{model}: median; mean ± sd' for model in models)]
    titles += [f'{model} − {models[-1]}' for model in models[:-1]]
    rows: list[list[str]] = []
    averaged: list[list[float]] = []
    for task, by_model in report.items():
        metric = next(iter(by_model.values()))['metric']
        entries = [by_model.get(model, {}).get('splits', {}).get(split, {}).get(metric) for model in models]
        if not any(entries):
            continue
        cells = [_cell(metric, entry) for entry in entries]
        differences = [_difference(metric, entry, entries[-1]) for entry in entries[:-1]]
        trivial = _value(next(iter(by_model.values()))['trivial'].get(metric))
        known = split == 'validation' and not math.isnan(trivial)
        rows.append([task, metric, f'{_scale(metric) * trivial:.2f}' if known else '', *cells, *differences])
        if all(entries) and metric not in DECREASING:
            averaged.append([entry['median'] for entry in entries])
    if len(averaged) > 1:
        means = [f'{100 * value:.2f}' for value in np.mean(averaged, axis=0)]
        rows.append([f'mean of {len(averaged)} medians', '', '', *means, *[''] * (len(titles) - 3 - len(means))])
    return markdown_lib.table(titles, rows, num_text_columns=2)


def _scale(metric: str) -> float:
    return 1.0 if metric in DECREASING else 100.0


def _cell(metric: str, entry: Mapping | None) -> str:
    if not entry:
        return ''
    scale = _scale(metric)
    deviation = None if entry['deviation'] is None else scale * entry['deviation']
    return f'{scale * entry["median"]:.2f}; {plus_minus(scale * entry["mean"], deviation, ".2f")}'


def _difference(metric: str, entry: Mapping | None, other: Mapping | None) -> str:
    if not entry or not other:
        return ''
    shared = [seed for seed in entry['by_seed'] if seed in other['by_seed']]
    if not shared:
        return ''
    mean, error = mean_and_error([_scale(metric) * (entry['by_seed'][s] - other['by_seed'][s]) for s in shared])
    return plus_minus(mean, error, '+.2f')


def draw(report: Mapping[str, Mapping[str, dict]], path: pathlib.Path) -> None:
    """Draws the validation metrics: a group of bars for each task, with a dot for each seed.

    Errors, which are better when they are smaller, have a panel of their own.

    Args:
      report: as for `markdown`.
      path: of the PNG file.
    """
    from matplotlib.patches import Patch

    groups = [
        [task for task, by_model in report.items() if (next(iter(by_model.values()))['metric'] in DECREASING) == errors]
        for errors in (False, True)
    ]
    groups = [group for group in groups if group]
    models = list(dict.fromkeys(model for by_model in report.values() for model in by_model))
    figure = pictures.new_figure(max(4.5, 2 + 1.1 * sum(map(len, groups))), 4.2)
    figure.suptitle('validation, median of seeds; dotted: trivial', fontsize=11)
    panels = figure.subplots(1, len(groups), squeeze=False, width_ratios=[len(group) for group in groups])[0]
    for axes, tasks in zip(panels, groups, strict=True):
        _draw_bars(axes, report, tasks, models)
    handles = [Patch(color=f'C{i}', alpha=0.6, label=pictures.plain_text(model)) for i, model in enumerate(models)]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(models))
    pictures.save(figure, path)


def _draw_bars(
    axes: 'Axes', report: Mapping[str, Mapping[str, dict]], tasks: Sequence[str], models: Sequence[str]
) -> None:
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        for place, task in enumerate(tasks):
            if model not in report[task]:
                continue
            entry = report[task][model]
            values = entry['splits']['validation'][entry['metric']]
            scale, x = _scale(entry['metric']), place + (i - (len(models) - 1) / 2) * width
            axes.bar(x, scale * values['median'], 0.9 * width, color=f'C{i}', alpha=0.6)
            dots = [scale * value for value in values['by_seed'].values()]
            axes.plot([x] * len(dots), dots, '.', color='black', markersize=3)
            trivial = _value(entry['trivial'].get(entry['metric']))
            if not math.isnan(trivial):
                axes.plot([place - 0.45, place + 0.45], [scale * trivial] * 2, ':', color='gray', linewidth=1)
    metrics = {task: next(iter(report[task].values()))['metric'] for task in tasks}
    names = [f'{pictures.plain_text(task.rpartition("/")[2])}\n{metric}' for task, metric in metrics.items()]
    axes.set_xticks(range(len(tasks)), names, fontsize=8)
    axes.grid(axis='y', alpha=0.3)
