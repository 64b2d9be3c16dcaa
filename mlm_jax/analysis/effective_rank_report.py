"""The effective rank of the representations of trained models on held-out text, as numbers and as a picture."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mlm_jax.analysis.effective_rank import GramSums, effective_rank, gram_sums
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.rows import place_rows
from mlm_jax.files import pictures
from mlm_jax.files.progress import bar
from mlm_jax.masking.batch import gather_positions
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained.model import Model
from mlm_jax.training import build
from mlm_jax.training.step import frozen_masks

CURVES = ('real tokens, masked input', '[MASK] tokens', 'all tokens, masked input', 'all tokens, unmasked input')


def layer_outputs(model: Model, params, *args, method: str) -> tuple[jax.Array, tuple]:
    """Runs an encoding method and returns the outputs of all layers, float[L, B, S, d], with the method's result.

    The last layer is what downstream sees: of a pre-LN encoder, the output of the final LayerNorm.
    """
    result, state = model.objective.apply({'params': params}, *args, method=method, mutable='intermediates')
    encoder = state['intermediates']['encoder']
    hidden_LxBxSxd = encoder['layers']['output'][0]
    if 'at' in encoder:  # the positions of the result, such as the tokens of a row that was expanded
        hidden_LxBxSxd = jax.vmap(gather_positions, (0, None))(hidden_LxBxSxd, encoder['at'][0])
    final_BxSxd = result[0] if isinstance(result, tuple) else result
    return hidden_LxBxSxd.at[-1].set(final_BxSxd), result


def rank_sums(model: Model, mesh, max_rows: int) -> GramSums:
    """Gram matrices of all layers for the four `CURVES`, over held-out rows at the frozen evaluation masks."""
    config, vocabulary = model.require_run()[0], model.tokenizer.vocabulary
    masking = build.evaluation_masking(config, vocabulary)
    rows = model.held_out_rows()
    batch_size = min(config.batch_size, 64)
    batch_size += -batch_size % mesh.size

    @jax.jit
    def batch_sums(params, tokens_BxT, row_B, valid_B):
        segments_BxT = segment_ids(tokens_BxT, vocabulary) * valid_B[:, None]
        batch = frozen_masks(masking, tokens_BxT, segments_BxT, row_B)
        masked, (_, slots_BxS, is_masked_BxS) = layer_outputs(model, params, batch, method='encode_masked')
        present = slots_BxS > 0
        member = jnp.stack([present & ~is_masked_BxS, present & is_masked_BxS, present])
        unmasked = tuple(jnp.repeat(x, model.repeats, axis=1) for x in (tokens_BxT, segments_BxT))
        plain, _ = layer_outputs(model, params, *unmasked, method='encode')
        parts = gram_sums_of_devices(masked, member, mesh), gram_sums_of_devices(plain, (unmasked[1] > 0)[None], mesh)
        # Behind the devices, groups are the first dimension of counts, and the second of sums and Gram matrices.
        return [jnp.concatenate(pair, axis) for pair, axis in zip(zip(*parts, strict=True), (1, 2, 2), strict=True)]

    sums = GramSums.zeros(config.model.num_layers, len(CURVES), config.model.width)
    count = min(len(rows), max_rows)
    for first in bar(range(0, count, batch_size), desc='rows', unit='batch'):
        row_B = np.arange(first, first + batch_size)
        tokens_BxT = place_rows(rows, np.minimum(row_B, count - 1), mesh_lib.batch_sharding(mesh))
        of_devices = batch_sums(model.params, tokens_BxT, row_B, (row_B < count).astype(np.int32))
        sums.add(*(np.asarray(x, np.float64).sum(0) for x in of_devices))
    return sums


def gram_sums_of_devices(hidden_LxBxTxd: jax.Array, member_GxBxT: jax.Array, mesh) -> tuple[jax.Array, ...]:
    """`gram_sums` of the rows of each device, along a first dimension.

    No device waits for another: XLA:CPU may start the collectives of two independent loops in another order on each
    device, and then waits for ever.
    """
    rows = PartitionSpec(None, mesh_lib.BATCH_AXES)
    return jax.shard_map(
        lambda *part: jax.tree.map(lambda x: x[None], gram_sums(*part)),
        mesh=mesh, in_specs=(rows, rows), out_specs=PartitionSpec(mesh_lib.BATCH_AXES), check_vma=False,
    )(hidden_LxBxTxd, member_GxBxT)  # fmt: skip


def describe(sums: GramSums, thresholds: Sequence[float]) -> dict:
    """Curve → centred or not → τ → the rank of each layer, and how many tokens it is of."""
    ranks = {
        kind: {t: effective_rank(sums.spectra(kind == 'centred'), t) for t in thresholds}
        for kind in ('uncentred', 'centred')
    }
    return {
        curve: {
            'tokens': int(sums.count_G[i]),
            **{kind: {f'{t:g}': r[:, i].tolist() for t, r in by_t.items()} for kind, by_t in ranks.items()},
        }
        for i, curve in enumerate(CURVES)
    }


def draw(report: dict[str, dict], threshold: str, path: pathlib.Path) -> None:
    """Draws rank against layer, a colour for each checkpoint and a style for each curve; centred and uncentred."""
    from matplotlib.lines import Line2D

    styles: dict[str, Any] = dict(zip(CURVES, ('-', ':', '-.', '--'), strict=True))
    figure = pictures.new_figure(12, 4.6)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ('uncentred', 'centred'), strict=True):
        for colour, entry in enumerate(report.values()):
            for curve, ranks in entry['curves'].items():
                if ranks['tokens']:
                    values = ranks[kind][threshold]
                    layers = range(1, len(values) + 1)
                    axes.plot(layers, values, styles[curve], color=f'C{colour}', marker='o', markersize=3)
        axes.set(xlabel='layer', title=f'{kind}, τ = {threshold}')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel('effective rank')
    models = [
        Line2D([], [], color=f'C{i}', linewidth=3, label=pictures.plain_text(label)) for i, label in enumerate(report)
    ]
    curves = [Line2D([], [], color='gray', linestyle=style, label=curve) for curve, style in styles.items()]
    figure.legend(handles=[*models, *curves], loc='outside right upper', fontsize=8, handlelength=4)
    pictures.save(figure, path)
