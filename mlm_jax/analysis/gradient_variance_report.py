"""The gradient variance of a trained model on its held-out text, as numbers, as a table and as a picture."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlm_jax.analysis import gradient_variance
from mlm_jax.analysis.gradient_variance import Design
from mlm_jax.data.rows import RowSource, place_rows
from mlm_jax.files import pictures
from mlm_jax.files.errors import ConfigError
from mlm_jax.files.progress import bar
from mlm_jax.files.statistics import plus_minus
from mlm_jax.masking.masking import Masking
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained.model import Model


def draws_of(model: Model, segments: int, draws: int) -> tuple[Masking, Design]:
    """The masking of a run at the step of a model, and the design of the draws from it."""
    masking = model.require_run()[1].masking.at_step(model.step or 0)
    again = (1.0,) if masking.mask_fraction < 1 else ()
    return masking, Design(segments, draws, (*gradient_variance.OVERLAPS, *again))


def measure(
    model: Model, mesh: jax.sharding.Mesh, num_texts: int, design: Design, gradients: Callable
) -> dict[str, Any]:
    """The measurement of `analysis/gradient_variance.py` on the first held-out rows that are long enough.

    Args:
      model: of any objective, with its parameters on `mesh`.
      mesh: each of its devices processes one text at a time.
      num_texts: S, the maximal number of texts.
      design: of the draws.
      gradients: what `make_sketched_gradients` returns for the objective and the masking of the model.

    Raises:
      ConfigError: when fewer than 3 rows are long enough.
    """
    rows = model.held_out_rows()
    assert model.config is not None, 'a model with held-out rows is a run, which has a configuration'
    chosen_S, size_S = choose_rows(model, num_texts, design.segments)
    texts: list[gradient_variance.TextMoments] = []
    own: list[tuple[float, np.ndarray, float]] = []
    with bar(total=len(chosen_S), desc='texts', unit='text') as progress:
        for first in range(0, len(chosen_S), mesh.size):
            number_B = np.arange(first, first + mesh.size)
            index_B = chosen_S[np.minimum(number_B, len(chosen_S) - 1)]
            tokens_BxT = place_rows(rows, index_B, mesh_lib.batch_sharding(mesh))
            # The number of a row selects its masks, which are therefore the same for every checkpoint and objective.
            found = gradients(model.params, tokens_BxT, place_numbers(index_B, mesh))
            windows_BxPxMxk, own_BxPxk = multihost_utils.process_allgather(found, tiled=True)
            for windows_PxMxk, own_Pxk in zip(windows_BxPxMxk, own_BxPxk, strict=True):
                if len(texts) < len(chosen_S):
                    texts.append(gradient_variance.window_moments(windows_PxMxk, design.segments))
                    own.append(gradient_variance.draw_moments(own_Pxk))
                    progress.update()
    shared_SxO = np.round(np.array(design.overlaps) * size_S[:, None])
    overlap_O = [0.0, *shared_SxO.mean(0).tolist()]
    summary = gradient_variance.summarize(texts, own, design)
    if 1.0 not in design.overlaps:  # not random corruption: masks of the same positions have the same gradient
        overlap_O.append(float(size_S.mean()))
        summary['covariance_over_variance'].append([1.0, 0.0])
    return {
        'step': model.step,
        'objective': model.objective_name,
        'texts': len(texts),
        'draws': design.draws,
        'segments': design.segments,
        'mask_size': float(size_S.mean()),
        'sketch_size': design.sketch_size,
        'masking': model.config.masking.to_dict(),
        'asked_ratio': model.require_run()[1].masking.asked_ratio(model.step or 0, model.config.batch_size),
        'overlap': overlap_O,
        'hamming_distance': [2 * (float(size_S.mean()) - overlap) for overlap in overlap_O],
        **summary,
    }


def choose_rows(model: Model, num_texts: int, segments: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the first held-out rows that are long enough, and the sizes of their masks, int64[S] each.

    Raises:
      ConfigError: when fewer than 3 rows are.
    """
    special_ids = model.tokenizer.vocabulary.special_ids
    chosen_S, size_S = _long_rows(model.held_out_rows(), special_ids, num_texts, segments)
    if len(chosen_S) < 3:
        raise ConfigError(
            f'only {len(chosen_S)} held-out rows are long enough, and 3 are needed: a row needs '
            f'{gradient_variance.MIN_MASK} tokens for each of {segments} disjoint masks. Lower --segments'
        )
    return chosen_S, size_S


def place_numbers(number_B: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """The numbers, int32[B], divided over the mesh as the rows of a batch are."""
    number_B = number_B.astype(np.int32)
    return jax.make_array_from_callback(number_B.shape, mesh_lib.batch_sharding(mesh), lambda index: number_B[index])


def _long_rows(
    rows: RowSource, special_ids: tuple[int, ...], count: int, segments: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` rows in which a mask has at least `MIN_MASK` positions, and the size of their masks."""
    chosen, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(rows), 1024):
        index = np.arange(first, min(first + 1024, len(rows)))
        size = (~np.isin(rows.read(index), special_ids)).sum(1) // segments
        chosen.append(index[size >= gradient_variance.MIN_MASK])
        sizes.append(size[size >= gradient_variance.MIN_MASK])
        if sum(map(len, chosen)) >= count:
            break
    return np.concatenate(chosen)[:count], np.concatenate(sizes)[:count]


def describe(label: str, entry: dict) -> str:
    """The table of one checkpoint, with a conclusion about disjoint masks."""
    k = entry['segments']
    lines = [
        f'{label} ({entry["objective"]}): {entry["texts"]} texts, {entry["draws"]} draws of {k} disjoint masks of '
        f'{entry["mask_size"]:.1f} tokens, sketches of {entry["sketch_size"]:,}',
        '    Hamming distance   common tokens   covariance / σ²',
    ]
    for distance, overlap, pair in zip(
        entry['hamming_distance'], entry['overlap'], entry['covariance_over_variance'], strict=True
    ):
        note = '   (the same positions with another random corruption)' if distance == 0 and pair[1] else ''
        lines.append(f'    {distance:16.1f}{overlap:16.1f}   {_estimate(pair)}{note}')
    masking = entry['masking']
    named = {
        'variance over the masks of a text, σ²': 'variance',
        'variance between texts, D': 'between_texts',
        'D / σ²': 'between_over_variance',
        f'variance of the mean over {k} disjoint masks / over {k} independent masks': 'disjoint_over_independent',
        f'variance of a step on {k} disjoint masks per text / on distinct texts': 'disjoint_over_distinct_texts',
        '(c_0 + D) / σ²': 'c0_plus_between_over_variance',
        f"σ² of the run's masks ({masking['strategy']}, {entry['asked_ratio']:.3g})": 'own_variance',
        "D of the run's masks": 'own_between_texts',
    }
    width = max(map(len, named))
    lines += [f'    {title:{width}}  {_estimate(entry[name])}' for title, name in named.items()]
    return '\n'.join([*lines, f'    {_verdict(entry)}'])


def _estimate(pair: Sequence[float]) -> str:
    value, error = pair
    return plus_minus(value, error, '.4g', '.2g')


def _verdict(entry: dict) -> str:
    value, error = entry['c0_plus_between_over_variance']
    if abs(value) < 2 * error:
        return 'c_0 + D differs from 0 by less than 2 standard errors: use more texts to see whether c_0 < −D'
    if value < 0:
        return 'c_0 < −D: gradients vary less over disjoint masks of one text than over as many distinct texts'
    return 'c_0 > −D: gradients vary less over distinct texts than over as many disjoint masks of one text'


def draw(report: dict[str, dict], path: pathlib.Path) -> None:
    """Draws covariance against Hamming distance, and the two ratios of variances, with a color for each checkpoint.

    Args:
      report: label → what `measure` returns.
      path: of the PNG file.
    """
    figure = pictures.new_figure(11, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ratios = {'disjoint_over_independent': 'independent\nmasks', 'disjoint_over_distinct_texts': 'distinct\ntexts'}
    for i, (label, entry) in enumerate(report.items()):
        style: dict[str, Any] = dict(color=f'C{i}', marker='o', markersize=4, capsize=3)
        value, error = np.array(entry['covariance_over_variance']).T
        left.errorbar(entry['hamming_distance'], value, error, label=pictures.plain_text(label), linewidth=1.2, **style)
        value, error = np.array([entry[name] for name in ratios]).T
        shift = 0.3 * (i - (len(report) - 1) / 2) / len(report)
        right.errorbar(np.arange(len(ratios)) + shift, value, error, linestyle='none', **style)
    left.axhline(0, color='gray', linewidth=0.8)
    left.set(xlabel='Hamming distance of two masks', ylabel='covariance / σ²', title='gradients of one text')
    left.legend(fontsize=8)
    right.axhline(1, color='gray', linewidth=0.8)
    right.set_xticks(range(len(ratios)), list(ratios.values()))
    right.set(xlim=(-0.5, len(ratios) - 0.5), ylabel='ratio', title='variance of disjoint masks / of as many …')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    pictures.save(figure, path)
