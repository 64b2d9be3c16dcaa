"""Floating-point operations of the model's matmuls."""

import ml_collections

from mlm_jax.config import resolve_steps, row_length
from mlm_jax.masking import selection
from mlm_jax.masking.fully_explored import FullyExplored


def step_flops(config: ml_collections.ConfigDict) -> float:
    """FLOPs of the matmuls of one optimizer step; the backward pass counts twice the forward pass.

    Rows count in full, packed or not, and only with what the objective needs: no unused slots. Each mask of a text is a
    row. Where the ratio of masked tokens moves, this is the mean over the run.
    """
    row_flops = {'mlm': mlm_row_flops, 'mae_lm': mae_lm_row_flops, 'exlm': exlm_row_flops}[config.objective]
    return 3 * config.batch_size * num_views(config) * row_flops(config)


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


def mlm_row_flops(config: ml_collections.ConfigDict) -> float:
    """Forward pass of MLM on a row of n tokens: L·(2nW + 4n²d) + m·(2d² + 2dV), m = ratio·n masked positions."""
    m, n = config.model, row_length(config)
    head = (
        masked_ratio(config)
        * config.masking.predicted_fraction
        * n
        * (2 * m.width**2 + 2 * m.width * config.vocab_size)
    )
    return m.num_layers * _layer_flops(m, n) + head


def mae_lm_row_flops(config: ml_collections.ConfigDict) -> float:
    """Forward pass of MAE-LM: the encoder on k = n − (1 − δ)m kept tokens, the decoder on n, the head on m.

    The paper's decoder costs L_d·(2nW_d + 4n²d_d); here its last layer computes all but keys and values for the m
    masked positions only: 4n·d_d² + 2m(W_d − 2d_d²) + 4nm·d_d. Where d_d ≠ d, each n and each m takes 2d·d_d more.
    """
    m, options, n = config.model, config.mae_lm, config.sequence_length
    masked = masked_ratio(config) * n
    kept = n - (1 - options.masked_in_encoder) * masked
    width = options.decoder_width or m.width
    ffn_width = options.decoder_ffn_width or m.ffn_width * width // m.width
    decoder = ml_collections.ConfigDict(dict(width=width, ffn_width=ffn_width, mlp=m.mlp))
    last = 4 * n * width**2 + 2 * masked * (_layer_weights(decoder) - 2 * width**2) + 4 * n * masked * width
    head = masked * (2 * width**2 + 2 * m.width * config.vocab_size)
    between = 2 * m.width * width * (n + masked) if width != m.width else 0
    layers = m.num_layers * _layer_flops(m, kept) + (options.decoder_layers - 1) * _layer_flops(decoder, n) + last
    return layers + head + between


def exlm_row_flops(config: ml_collections.ConfigDict) -> float:
    """Forward pass of ExLM: the encoder on n' = n + (k − 1)e slots, e = ratio·n + 2; the head on S = k·e states.

    Transitions take 2·S·2d(2d + C) for queries, keys and gates, and 2S²d for their products; the likelihood 2·e·S².
    """
    m, options, n = config.model, config.exlm, config.sequence_length
    expanded = masked_ratio(config) * n + 2 * options.anchors
    states = options.num_states * expanded
    layers = m.num_layers * _layer_flops(m, n + (options.num_states - 1) * expanded)
    head = states * (2 * m.width**2 + 2 * m.width * config.vocab_size)
    if options.transitions == 'none':
        return layers + head
    heads = options.transition_heads or m.num_heads
    links = 4 * states * m.width * (2 * m.width + (heads if heads > 1 else 0)) + 2 * states**2 * m.width
    return layers + head + links + 2 * expanded * states**2


def _layer_weights(m: ml_collections.ConfigDict) -> int:
    """W = 4d² + g·d·F, g = 2 (GELU) or 3 (GeGLU)."""
    return 4 * m.width**2 + (3 if m.mlp == 'geglu' else 2) * m.width * m.ffn_width


def _layer_flops(m: ml_collections.ConfigDict, n: float) -> float:
    """2nW + 4n²d for n tokens that see each other."""
    return 2 * n * _layer_weights(m) + 4 * n**2 * m.width
