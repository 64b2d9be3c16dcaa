"""The entropy of trained models on the same held-out text, as numbers, as a table and as a picture."""

import pathlib
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlm_jax.analysis import entropy
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.rows import place_rows
from mlm_jax.files import pictures
from mlm_jax.files.errors import ConfigError
from mlm_jax.files.progress import bar
from mlm_jax.files.statistics import plus_minus
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import batches
from mlm_jax.pretrained.model import Model
from mlm_jax.training import build
from mlm_jax.training.step import frozen_masks

LineStyle = Literal['-', '--', '-.', ':'] | tuple[float, tuple[float, ...]]  # a name, or lengths of dashes and gaps
STYLES: tuple[LineStyle, ...] = ('-', '--', '-.', ':')


def same_text(first: Model, other: Model, max_rows: int) -> bool:
    """Whether two models read the same: tokenizer, first `max_rows` held-out rows, copies of each token in a row."""
    if first.tokenizer.model != other.tokenizer.model or first.repeats != other.repeats:
        return False
    one, two = first.held_out_rows(), other.held_out_rows()
    if (len(one), one.sequence_length) != (len(two), two.sequence_length):
        return False
    few = np.arange(min(len(one), max_rows))
    return bool((one.read(few) == two.read(few)).all())


def measure(model: Model, mesh: jax.sharding.Mesh, ratios: Sequence[float], max_rows: int) -> dict[str, dict]:
    """Mask ratio → what `entropy.summarize` returns for the first held-out rows.

    The mask of a row depends only on its number, its tokens and the ratio, so it is the same for every checkpoint. All
    chosen positions are replaced by [MASK]. The logits of only one batch exist at a time.

    Args:
      model: of any objective, with its parameters on `mesh`.
      mesh: the rows of a batch are divided over its devices.
      ratios: mask ratios, each above 0 and below 1.
      max_rows: the maximal number of rows.

    Raises:
      ConfigError: when there are no held-out rows, or no token of these rows is masked.
    """
    rows, vocabulary = model.held_out_rows(), model.tokenizer.vocabulary
    objective = model.objective.at_any_ratio()
    count = min(len(rows), max_rows)
    found: dict[str, dict] = {}
    for ratio in ratios:
        masking = build.evaluation_masking(model.config, vocabulary, ratio)
        at_once = batches.rows_at_once(
            objective, rows.sequence_length, masking.max_masked(rows.sequence_length), vocabulary.size
        )
        batch_size = min(at_once, 64, count)
        batch_size += -batch_size % mesh.size

        def batch_sums(params, tokens_BxT, row_B, valid_B, masking=masking):
            segments_BxT = segment_ids(tokens_BxT, vocabulary) * valid_B[:, None]
            return entropy.row_sums(objective, params, frozen_masks(masking, tokens_BxT, segments_BxT, row_B))

        jitted, parts = jax.jit(batch_sums), []
        for first in bar(range(0, count, batch_size), desc=f'ratio {ratio:g}', unit='batch'):
            row_B = np.arange(first, first + batch_size)
            tokens_BxT = place_rows(rows, np.minimum(row_B, count - 1), mesh_lib.batch_sharding(mesh))
            sums = jitted(model.params, tokens_BxT, row_B, (row_B < count).astype(np.int32))
            parts.append(multihost_utils.process_allgather(sums, tiled=True))
        total = jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)
        if not total['tokens'].sum():
            raise ConfigError(
                f'at a mask ratio of {ratio:g}, no token of {count} held-out rows is masked: use a larger ratio'
            )
        found[f'{ratio:g}'] = entropy.summarize(total)
    return found


def describe(label: str, entry: dict) -> str:
    """The table of one checkpoint: bits per masked token with their standard errors."""
    step = '' if entry['step'] is None else f', step {entry["step"]:,}'
    lines = [
        f'{label} ({entry["objective"]}{step}): bits per masked token, {entry["rows"]:,} rows',
        f'    {"masked":>6}  {"definition":20}{"entropy":>16}{"NLL":>17}{"NLL − entropy":>18}',
    ]
    for ratio, summary in entry['ratios'].items():
        for name, values in summary['bits'].items():
            cells = ''.join(
                plus_minus(mean, error, '9.3f', '.3f') for mean, error in (values['entropy'], values['nll'])
            )
            gap = plus_minus(values['gap'][0], values['gap'][1], '+9.3f', '.3f')
            lines.append(f'    {float(ratio):6.0%}  {name:20}{cells}   {gap}')
        if summary['left_out']:
            lines.append(
                f'    {summary["left_out"]:,} masked tokens are left out, because their rows have no alignment'
            )
    return '\n'.join(lines)


def line_style(index: int) -> LineStyle:
    """The line style of the definition with that index of an objective: beyond `STYLES`, a dash and ever more dots."""
    return STYLES[index] if index < len(STYLES) else (0, (6, 1.6, *(1, 1.6) * (index - 2)))


def definitions(entry: dict) -> list[str]:
    """The names of the predictions of one checkpoint, in the order of its objective."""
    return list(next(iter(entry['ratios'].values()))['bits'])


def styles_by_name(report: dict[str, dict]) -> dict[str, LineStyle]:
    """'objective: definition' → line style, of the objectives with several definitions; as the legend names them."""
    several = [entry for entry in report.values() if len(definitions(entry)) > 1]
    return {f'{e["objective"]}: {name}': line_style(i) for e in several for i, name in enumerate(definitions(e))}


def draw(report: dict[str, dict], path: pathlib.Path) -> None:
    """Draws entropy, NLL and their difference against the mask ratio.

    Each checkpoint has a color, and each definition of the entropy a line style, by its place among those of the
    objective. The legend names the definitions of objectives that have several.

    Args:
      report: label → a dictionary with the name of the objective under 'objective', and the results of `measure` under
        'ratios'.
      path: of the PNG file.
    """
    from matplotlib.lines import Line2D

    figure = pictures.new_figure(13, 4.8)
    panels = {'entropy': 'entropy', 'nll': 'negative log-likelihood', 'gap': 'NLL − entropy'}
    for axes, (key, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for i, entry in enumerate(report.values()):
            ratios = list(map(float, entry['ratios']))
            summaries = list(entry['ratios'].values())
            for j, name in enumerate(definitions(entry)):
                value, error = np.array([summary['bits'][name][key] for summary in summaries]).T
                style = dict(color=f'C{i}', linestyle=line_style(j), marker='o', markersize=4, capsize=2)
                axes.errorbar(ratios, value, error, **style)
        axes.set(xlabel='share of the tokens that are masked', title=title)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel('bits per masked token')
    figure.axes[2].axhline(0, color='gray', linewidth=0.8)
    colors = [
        Line2D([], [], color=f'C{i}', marker='o', label=pictures.plain_text(label)) for i, label in enumerate(report)
    ]
    styles = [
        Line2D([], [], color='gray', linestyle=style, label=pictures.plain_text(name))
        for name, style in styles_by_name(report).items()
    ]
    figure.legend(handles=colors + styles, loc='outside lower center', ncols=4, fontsize=8, handlelength=4)
    pictures.save(figure, path)
