"""The loss curve of a run as a picture: training loss and held-out loss, and below them where the time went."""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mlm_jax.files import pictures
from mlm_jax.training import goodput
from mlm_jax.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Metric → its label and its line.
_CURVES = (
    ('train/loss', 'training', '-'),
    ('eval/loss', 'held out', 'o-'),
    ('eval_ema/loss', 'held out, moving average', 's--'),
)
_MOST_SOURCES = 6


def draw_loss_curve(workdir: pathlib.Path, unigram_entropy: float | None = None) -> pathlib.Path:
    """Draws `<workdir>/loss_curve.png` from `metrics.jsonl`.

    Args:
      workdir: the workdir of the run.
      unigram_entropy: in nats per token, drawn as a line: the lowest loss of a model that ignores the context.

    Returns:
      The path of the picture.
    """
    lines = read_metrics(workdir / 'metrics.jsonl')
    seconds = next((found for line in reversed(lines) if (found := goodput.seconds_of(line))), {})
    figure = pictures.new_figure(7, 5.2 if seconds else 4.2)
    axes, *below = figure.subplots(2, height_ratios=(9, 1)) if seconds else [figure.subplots()]
    for name, label, style in (*_CURVES, *_of_sources(lines)):
        points = [(line['step'], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    if unigram_entropy:
        axes.axhline(unigram_entropy, color='gray', linestyle=':', label='unigram entropy')
    axes.set(xlabel='step', ylabel='loss (nats per masked token)', title=pictures.plain_text(workdir.absolute().name))
    axes.grid(alpha=0.3)
    axes.legend()
    if below:
        _draw_goodput(below[0], seconds)
    path = workdir / 'loss_curve.png'
    pictures.save(figure, path)
    return path


def _of_sources(lines: Iterable[Mapping[str, float]]) -> list[tuple[str, str, str]]:
    """The curves of the held-out losses of the sources of a mixture, unless these are too many to tell apart."""
    found = sorted({name for line in lines for name in line if re.fullmatch('eval/.+/loss', name)})
    sources = [(name, f'held out, {name.split("/")[1]}', '.:') for name in found]
    return sources if len(sources) <= _MOST_SOURCES else []


def _draw_goodput(axes: 'Axes', seconds: Mapping[str, float]) -> None:
    """Draws where the time went as one bar; what is less than 0.1 % of it is left out."""
    total, left = max(sum(seconds.values()), 1e-9), 0.0
    for number, (name, meaning) in enumerate(goodput.MEANINGS.items()):
        if (share := 100 * seconds.get(name, 0.0) / total) >= 0.1:
            axes.barh(0, share, left=left, color=f'C{number}', label=f'{meaning} {share:.1f} %')
            left += share
    axes.set(xlim=(0, 100), yticks=[], xlabel=f'where {goodput.duration(total)} went, %')
    axes.legend(ncols=3, fontsize='x-small', loc='upper center', bbox_to_anchor=(0.5, -1.1), frameon=False)
