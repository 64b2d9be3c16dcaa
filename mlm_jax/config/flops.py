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

import ml_collections
import numpy as np

from mlm_jax.config.durations import resolve_steps
from mlm_jax.config.keys import row_length
from mlm_jax.masking import registry
from mlm_jax.masking.registry import FullyExplored
from mlm_jax.objectives.costs import Sizes
from mlm_jax.objectives.registry import OBJECTIVES


def step_flops(config: ml_collections.ConfigDict, *, slots: bool = False, document_share: float = 1.0) -> float:
    """FLOPs of the products of one optimizer step.

    Args:
      config: a checked configuration. Each mask of a text is a row; where the ratio of masked tokens moves, this is the
        mean over the run.
      slots: counts what the static shapes compute, unused slots too; else what the objective needs.
      document_share: Σ n² over documents by Σ T² over rows, of attention; see `document_share`.
    """
    sizes = slot_sizes(config) if slots else needed_sizes(config)
    spec, options = OBJECTIVES[config.objective], config.get(config.objective)
    row_flops = spec.row_flops(config.model, options, config.vocab_size, sizes, document_share)
    return 3 * config.batch_size * num_views(config) * row_flops


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


def needed_sizes(config: ml_collections.ConfigDict) -> Sizes:
    """What the objective needs, on average over the run."""
    n = row_length(config)
    masked = masked_ratio(config) * n * config.masking.predicted_fraction
    return OBJECTIVES[config.objective].sizes(config.get(config.objective), n, masked)


def slot_sizes(config: ml_collections.ConfigDict) -> Sizes:
    """What the static shapes hold."""
    return OBJECTIVES[config.objective].slots(config.get(config.objective), row_length(config), max_masked(config))


def max_masked(config: ml_collections.ConfigDict) -> int:
    """M, the slots of a row for predictions, as `Masking.max_masked`."""
    k, length = config.masking, row_length(config)
    largest = k.ratio if k.ratio_schedule == 'constant' else max(k.ratio, k.final_ratio)
    unit, options = registry.UNITS[k.unit], FullyExplored(**k.fully_explored)
    corrupted = registry.STRATEGIES[k.strategy].max_masked(unit, largest, length, options)
    return registry.max_count(k.predicted_fraction, corrupted) if k.predicted_fraction < 1 else corrupted


def num_views(config: ml_collections.ConfigDict) -> int:
    """How many masks of each text a step has: rows of the model for each row of text."""
    k = config.masking
    return registry.STRATEGIES[k.strategy].num_views(FullyExplored(**k.fully_explored))


def masked_ratio(config: ml_collections.ConfigDict) -> float:
    """The share of the tokens of a row that are masked, on average over the run."""
    k = config.masking
    if k.ratio_schedule == 'constant':
        return registry.STRATEGIES[k.strategy].ratio(k.ratio, k.fully_explored)
    if k.ratio_schedule == 'diffusion':
        return (k.ratio + k.final_ratio) / 2
    # The length of an epoch is not known here: it matters only where one duration is given in epochs, and one is not.
    total_steps = resolve_steps(config, 'total', steps_per_epoch=1000.0)
    anneal_steps = resolve_steps(config, 'masking.anneal', total_steps=total_steps, steps_per_epoch=1000.0) or 0
    share = min(1.0, anneal_steps / total_steps) * (1 if k.ratio_schedule == 'staged' else 0.5)
    return (1 - share) * k.ratio + share * k.final_ratio


def attention_flops(config: ml_collections.ConfigDict) -> float:
    """Of the encoder and the decoder, the part of `step_flops` that is attention: what fused kernels hide."""
    return step_flops(config) - step_flops(config, document_share=0.0)
