"""Floating-point operations of the model's matrix products, a multiply-add being two.

A step counts as 3 forward passes: each product has two in the backward pass, for its input and for its weights. That
holds everywhere here: the input of the first layer is made of embeddings, which learn, and the products in attention
have two inputs. The exceptions are named where they are.

Two counts. What an objective *needs* is the measure of comparisons and of MFU: rows in full, padded or packed, the head
on the masked positions alone, the encoder of MAE-LM on the kept ones, that of ExLM on expanded rows, and no unused
slots. What its *slots* compute is the same with the static shapes in place of the means, and what XLA really compiles,
up to a few per mille. Attention counts as over whole rows, since every backend computes them and masks; what attention
within documents would need is the same with `document_share`.
"""

import dataclasses

import jax
import ml_collections
import numpy as np

from mlm_jax.config import resolve_steps, row_length
from mlm_jax.masking import selection
from mlm_jax.masking.fully_explored import FullyExplored
from mlm_jax.masking.vocabulary import standard_vocabulary


def step_flops(config: ml_collections.ConfigDict, *, slots: bool = False, document_share: float = 1.0) -> float:
    """FLOPs of the products of one optimizer step.

    Args:
      config: a checked configuration. Each mask of a text is a row; where the ratio of masked tokens moves, this is the
        mean over the run.
      slots: counts what the static shapes compute, unused slots too; else what the objective needs.
      document_share: Σ n² over documents by Σ T² over rows, of attention; see `document_share`.
    """
    row_flops = {'mlm': mlm_row_flops, 'mae_lm': mae_lm_row_flops, 'exlm': exlm_row_flops}[config.objective]
    sizes = slot_sizes(config) if slots else needed_sizes(config)
    return 3 * config.batch_size * num_views(config) * row_flops(config, sizes, document_share)


def document_share(segments_BxT: np.ndarray) -> float:
    """Σ n² over the documents of rows, padding not among them, by Σ T² over the rows.

    The share of attention over whole rows that attention within documents needs. Tokens are masked everywhere alike, so
    it holds for MAE-LM's kept tokens and for ExLM's expanded rows too.
    """
    segments_BxT = np.asarray(segments_BxT)
    rows, length = segments_BxT.shape
    numbered = segments_BxT + (segments_BxT.max() + 1) * np.arange(rows)[:, None]
    _, sizes = np.unique(numbered[segments_BxT > 0], return_counts=True)
    return float((sizes.astype(np.float64) ** 2).sum() / (rows * length**2))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens in the parts of one row of the model.

    Attributes:
      length: n, of the row.
      masked: m, that are predicted.
      encoded: that the encoder reads: n, MAE-LM's kept tokens, or ExLM's expanded row.
      expanded: e, of ExLM.
    """

    length: float
    masked: float
    encoded: float
    expanded: float = 0.0


def needed_sizes(config: ml_collections.ConfigDict) -> Sizes:
    """What the objective needs, on average over the run."""
    n = row_length(config)
    masked = masked_ratio(config) * n
    if config.objective == 'mae_lm':
        return Sizes(n, masked, n - (1 - config.mae_lm.masked_in_encoder) * masked)
    if config.objective == 'exlm':
        expanded = masked + 2 * config.exlm.anchors
        return Sizes(n, masked, n + (config.exlm.num_states - 1) * expanded, expanded)
    return Sizes(n, masked * config.masking.predicted_fraction, n)


def slot_sizes(config: ml_collections.ConfigDict) -> Sizes:
    """What the static shapes hold, from the shapes of the model itself."""
    from mlm_jax.training import build  # makes whole runs, which formulas are made of otherwise
    from mlm_jax.training.state import example_batch

    run = build.make_run(build.traceable(config), standard_vocabulary(config.vocab_size), 1000.0)
    n, masked = row_length(config), run.masking.max_masked(config.sequence_length)

    def encode():
        return run.objective.apply({'params': run.init().params}, example_batch(n, masked), method='encode_masked')

    encoded = jax.eval_shape(encode)[0].shape[1]
    expanded = min(n, masked + 2 * config.exlm.anchors) if config.objective == 'exlm' else 0
    return Sizes(n, masked, encoded, expanded)


def num_views(config: ml_collections.ConfigDict) -> int:
    """How many masks of each text a step has: rows of the model for each row of text."""
    return selection.num_views(config.masking.strategy, FullyExplored(**config.masking.fully_explored))


def masked_ratio(config: ml_collections.ConfigDict) -> float:
    """The share of the tokens of a row that are masked, on average over the run."""
    k = config.masking
    if k.strategy == 'fully_explored':
        return 1 / k.fully_explored.segments
    if k.ratio_schedule == 'constant':
        return k.ratio
    if k.ratio_schedule == 'diffusion':
        return (k.ratio + k.final_ratio) / 2
    # The length of an epoch is not known here: it matters only where one duration is given in epochs, and one is not.
    total_steps = resolve_steps(config, 'total', steps_per_epoch=1000.0)
    anneal_steps = resolve_steps(config, 'masking.anneal', total_steps=total_steps, steps_per_epoch=1000.0) or 0
    share = min(1.0, anneal_steps / total_steps) * (1 if k.ratio_schedule == 'staged' else 0.5)
    return (1 - share) * k.ratio + share * k.final_ratio


def mlm_row_flops(config: ml_collections.ConfigDict, sizes: Sizes, document_share: float = 1.0) -> float:
    """Forward pass of MLM on n tokens, r of them predicted: (L − 1)·(2nW + 4n²d) + last + r·(2d² + 2dV).

    The last layer computes all but keys and values for the predicted positions only: 4nd² + 2r(W − 2d²) + 4nr·d.
    """
    m = config.model
    head = sizes.masked * (2 * m.width**2 + 2 * m.width * config.vocab_size)
    return _stack_flops(m, m.num_layers, sizes.encoded, sizes.masked, document_share) + head


def mae_lm_row_flops(config: ml_collections.ConfigDict, sizes: Sizes, document_share: float = 1.0) -> float:
    """Forward pass of MAE-LM: the encoder on k = n − (1 − δ)m kept tokens, the decoder on n, the head on m.

    The paper's decoder costs L_d·(2nW_d + 4n²d_d); here its last layer is that of MLM, read at the masked positions.
    Where d_d ≠ d, each n and each m takes 2d·d_d more.
    """
    m, options, n, masked = config.model, config.mae_lm, sizes.length, sizes.masked
    decoder = mae_lm_decoder(config)
    width = decoder.width
    head = masked * (2 * width**2 + 2 * m.width * config.vocab_size)
    between = 2 * m.width * width * (n + masked) if width != m.width else 0
    encoder = m.num_layers * _layer_flops(m, sizes.encoded, document_share)
    return encoder + _stack_flops(decoder, options.decoder_layers, n, masked, document_share) + head + between


def mae_lm_decoder(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`width`, `ffn_width` and `mlp` of the decoder, as `config.model` has those of the encoder."""
    m, options = config.model, config.mae_lm
    width = options.decoder_width or m.width
    ffn_width = options.decoder_ffn_width or m.ffn_width * width // m.width
    return ml_collections.ConfigDict(dict(width=width, ffn_width=ffn_width, mlp=m.mlp))


def exlm_row_flops(config: ml_collections.ConfigDict, sizes: Sizes, document_share: float = 1.0) -> float:
    """Forward pass of ExLM: the encoder on n' = n + (k − 1)e slots, its last layer and the head on S = k·e states.

    Transitions take 2·S·2d(2d + C) for queries, keys and gates, and 2S²d for their products. The logits of the targets
    under each state, 2·e·S·d, are computed beside those of the vocabulary. The likelihood sums 2·e·S² products, whose
    gradient is made of the same sums from both ends: it counts 3 times like all else.
    """
    m, options = config.model, config.exlm
    states = options.num_states * sizes.expanded
    layers = _stack_flops(m, m.num_layers, sizes.encoded, states, document_share)
    head = states * (2 * m.width**2 + 2 * m.width * config.vocab_size) + 2 * sizes.expanded * states * m.width
    if options.transitions == 'none':
        return layers + head
    heads = options.transition_heads or m.num_heads
    links = 4 * states * m.width * (2 * m.width + (heads if heads > 1 else 0)) + 2 * states**2 * m.width
    return layers + head + links + 2 * sizes.expanded * states**2


def attention_flops(config: ml_collections.ConfigDict) -> float:
    """Of the encoder and the decoder, the part of `step_flops` that is attention: what fused kernels hide."""
    return step_flops(config) - step_flops(config, document_share=0.0)


def layer_weights(m: ml_collections.ConfigDict) -> int:
    """W = 4d² + g·d·F, g = 2 (GELU) or 3 (GeGLU): the weights of a layer, by its `width`, `ffn_width` and `mlp`."""
    return 4 * m.width**2 + (3 if m.mlp == 'geglu' else 2) * m.width * m.ffn_width


def _stack_flops(m: ml_collections.ConfigDict, num_layers: int, n: float, read: float, document_share: float) -> float:
    """`num_layers` layers of n tokens; the last one is read at some of them, and needs keys and values of all."""
    keys_and_values = 2 * m.width**2
    last = 2 * n * keys_and_values + 2 * read * (layer_weights(m) - keys_and_values)
    last += 4 * n * read * m.width * document_share
    return (num_layers - 1) * _layer_flops(m, n, document_share) + last


def _layer_flops(m: ml_collections.ConfigDict, n: float, document_share: float) -> float:
    """2nW + 4n²d for n tokens that see each other."""
    return 2 * n * layer_weights(m) + 4 * n**2 * m.width * document_share
