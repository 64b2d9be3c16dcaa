"""The gradient variance of a trained model on its held-out text, as numbers, as a table and as a picture."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlm_jax.analysis import gradient_variance
from mlm_jax.analysis.gradient_variance import Design
from mlm_jax.data.rows import place_rows
from mlm_jax.data.shards import Shards
from mlm_jax.files.errors import ConfigError
from mlm_jax.files.pictures import plain_text
from mlm_jax.files.progress import bar
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained.model import Model


def measure(model: Model, mesh: jax.sharding.Mesh, num_texts: int, design: Design, gradients: Callable) -> dict:
    """The measurement of `analysis/gradient_variance.py` on the first held-out rows that are long enough.

    Args:
      model: any objective, on `mesh`.
      mesh: one text at a time on each device.
      num_texts: S.
      design: of the draws.
      gradients: from `make_sketched_gradients` for the model's objective and masking; the same for all checkpoints.

    Raises:
      ConfigError: when there are fewer than 3 such rows.
    """
    rows = model.held_out_rows()
    chosen_S, size_S = _long_rows(rows, model.tokenizer.vocabulary.special_ids, num_texts, design.segments)
    if len(chosen_S) < 3:
        raise ConfigError(
            f'{len(chosen_S)} held-out rows have {gradient_variance.MIN_MASK} tokens for each of {design.segments} '
            'disjoint masks, and 3 are needed: lower --segments'
        )
    texts, own = [], []
    with bar(total=len(chosen_S), desc='texts', unit='text') as progress:
        for first in range(0, len(chosen_S), mesh.size):
            number_B = np.arange(first, first + mesh.size)
            index_B = chosen_S[np.minimum(number_B, len(chosen_S) - 1)]
            tokens_BxT = place_rows(rows, index_B, mesh_lib.batch_sharding(mesh))
            # Of a row, the masks are the same in every checkpoint and objective.
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
    if 1.0 not in design.overlaps:  # then the same positions give the same gradient
        overlap_O.append(float(size_S.mean()))
        summary['covariance_over_variance'].append([1.0, 0.0])
    return {
        'step': model.step,
        'objective': model.config.objective,
        'texts': len(texts),
        'draws': design.draws,
        'segments': design.segments,
        'mask_size': float(size_S.mean()),
        'sketch_size': design.sketch_size,
        'masking': model.config.masking.to_dict(),
        'overlap': overlap_O,
        'hamming_distance': [2 * (float(size_S.mean()) - overlap) for overlap in overlap_O],
        **summary,
    }


def place_numbers(number_B: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """int32[B] on the mesh, split as rows are."""
    number_B = number_B.astype(np.int32)
    return jax.make_array_from_callback(number_B.shape, mesh_lib.batch_sharding(mesh), lambda index: number_B[index])


def _long_rows(rows: Shards, special_ids: tuple[int, ...], count: int, segments: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` rows in which a mask has `MIN_MASK` positions or more, and how many it has in each."""
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
    """The table of one checkpoint, with what it means for disjoint masks."""
    k = entry['segments']
    lines = [
        f'{label} ({entry["objective"]}): {entry["texts"]} texts, {entry["draws"]} draws of {k} disjoint masks of '
        f'{entry["mask_size"]:.1f} tokens, sketches of {entry["sketch_size"]:,}',
        '    Hamming distance   common tokens   covariance / σ²',
    ]
    for distance, overlap, pair in zip(
        entry['hamming_distance'], entry['overlap'], entry['covariance_over_variance'], strict=True
    ):
        note = '   (the same positions, corrupted anew)' if distance == 0 and pair[1] else ''
        lines.append(f'    {distance:16.1f}{overlap:16.1f}   {_plus_minus(pair)}{note}')
    masking = entry['masking']
    named = {
        'variance over masks of a text, σ²': 'variance',
        'variance between texts, D': 'between_texts',
        'D / σ²': 'between_over_variance',
        f'mean over {k} disjoint masks : over {k} independent ones': 'disjoint_over_independent',
        f'step of {k} disjoint masks a text : of as many distinct texts': 'disjoint_over_distinct_texts',
        '(c_0 + D) / σ²': 'c0_plus_between_over_variance',
        f"σ² of the run's masks ({masking['strategy']}, {masking['ratio']:g})": 'own_variance',
        "D of the run's masks": 'own_between_texts',
    }
    width = max(map(len, named))
    lines += [f'    {title:{width}}  {_plus_minus(entry[name])}' for title, name in named.items()]
    return '\n'.join([*lines, f'    {_verdict(entry)}'])


def _verdict(entry: dict) -> str:
    value, error = entry['c0_plus_between_over_variance']
    if abs(value) < 2 * error:
        return 'whether c_0 < −D cannot be told (less than 2 standard errors): take more texts'
    if value < 0:
        return 'c_0 < −D: disjoint masks of one text vary less than as many distinct texts'
    return 'c_0 > −D: as many distinct texts vary less than disjoint masks of one text'


def _plus_minus(pair: list[float]) -> str:
    return f'{pair[0]:.4g} ± {pair[1]:.2g}'


def draw(report: dict[str, dict], path: pathlib.Path) -> None:
    """Draws covariance against Hamming distance, and the two ratios of variances, a colour for each checkpoint."""
    from matplotlib.figure import Figure  # no pyplot: no global state and no display

    figure = Figure(figsize=(11, 4.4), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ratios = {'disjoint_over_independent': 'independent\nmasks', 'disjoint_over_distinct_texts': 'distinct\ntexts'}
    for i, (label, entry) in enumerate(report.items()):
        style = dict(color=f'C{i}', marker='o', markersize=4, capsize=3)
        value, error = np.array(entry['covariance_over_variance']).T
        left.errorbar(entry['hamming_distance'], value, error, label=plain_text(label), linewidth=1.2, **style)
        value, error = np.array([entry[name] for name in ratios]).T
        shift = 0.3 * (i - (len(report) - 1) / 2) / len(report)
        right.errorbar(np.arange(len(ratios)) + shift, value, error, linestyle='none', **style)
    left.axhline(0, color='gray', linewidth=0.8)
    left.set(xlabel='Hamming distance of two masks', ylabel='covariance / σ²', title='gradients of one text')
    left.legend(fontsize=8)
    right.axhline(1, color='gray', linewidth=0.8)
    right.set_xticks(range(len(ratios)), list(ratios.values()))
    right.set(xlim=(-0.5, len(ratios) - 0.5), ylabel='ratio', title='variance of disjoint masks, to that of as many …')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
