"""Floating-point operations (FLOPs) of the model's matrix products. A multiply-add counts as two operations.

A training step counts as 3 forward passes: each product has two products in its backward pass, one for the gradient of
each operand. This holds for every product here: the input of the first layer consists of embeddings, which are trained,
and in attention both operands are activations. Exceptions are noted where they occur.

There are two counts. The FLOPs that an objective *needs* are the measure for comparisons and for MFU: full rows, padded
or packed; the head only on masked positions; the encoder of MAE-LM on kept tokens and that of ExLM on expanded rows; no
unused slots. The FLOPs of its *slots* have the static shapes in place of the means; they are what XLA compiles, up to a
few per mille. An expanded row has the anchors of one document; where it holds several documents, and `exlm.alignments`
lets each have its own, it needs some per cent more than is counted. Attention counts over whole rows, since every
backend computes whole rows and masks the scores; the count for attention within documents takes `document_share`.
Windows lower the count only with the attention backend splash, whose kernel skips blocks that lie outside; xla and
cudnn compute whole rows and mask them.
"""

import ml_collections
import numpy as np

from mlm_jax.config.defaults import row_length
from mlm_jax.config.durations import NOMINAL_STEPS_PER_EPOCH, resolve_steps
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking import registry
from mlm_jax.objectives.layer_flops import Sizes
from mlm_jax.objectives.registry import OBJECTIVES


def step_flops(config: ml_collections.ConfigDict, *, slots: bool = False, document_share: float = 1.0) -> float:
    """The FLOPs of the matrix products of one optimizer step, or their mean over the run if the mask ratio changes.

    Args:
      config: a checked configuration. If masking makes several masks of a text, each counts as a row.
      slots: whether to count what the static shapes compute, with unused slots, instead of what the objective needs.
      document_share: the share of attention that is counted; see the function `document_share`.
    """
    sizes = slot_sizes(config) if slots else needed_sizes(config)
    spec, options = OBJECTIVES[config.objective], config.get(config.objective)
    row_flops = spec.row_flops(config.model, options, config.vocab_size, sizes, document_share)
    return 3 * config.batch_size * num_views(config) * row_flops


def document_share(segments_BxT: np.ndarray) -> float:
    """Σ n² over the documents of the rows, without padding, divided by Σ T² over the rows.

    This is the share of attention over whole rows that attention within documents needs. As all documents are masked at
    the same ratio, it also holds for MAE-LM's kept tokens and for ExLM's expanded rows.

    Args:
      segments_BxT: int[B, T], the document of each token; 0 is padding.
    """
    segments_BxT = np.asarray(segments_BxT)
    rows, length = segments_BxT.shape
    numbered = segments_BxT + (segments_BxT.max() + 1) * np.arange(rows)[:, None]
    _, sizes = np.unique(numbered[segments_BxT > 0], return_counts=True)
    return float((sizes.astype(np.float64) ** 2).sum() / (rows * length**2))


def needed_sizes(config: ml_collections.ConfigDict) -> Sizes:
    """The numbers of tokens that the objective needs for a row, on average over the run."""
    n = row_length(config)
    masked = masked_ratio(config) * n * config.masking.predicted_fraction
    return OBJECTIVES[config.objective].sizes(config.get(config.objective), n, masked)


def slot_sizes(config: ml_collections.ConfigDict) -> Sizes:
    """The static shapes for a row."""
    return OBJECTIVES[config.objective].slots(config.get(config.objective), row_length(config), max_masked(config))


def max_masked(config: ml_collections.ConfigDict) -> int:
    """M, the number of slots of a row for predictions, as `Masking.max_masked` computes it."""
    k, length = config.masking, row_length(config)
    largest = registry.largest_ratio(k.ratio_schedule, k.ratio, k.final_ratio)
    corrupted = registry.STRATEGIES[k.strategy].max_masked(largest, length, k)
    return registry.max_predicted(k.predicted_fraction, corrupted)


def num_views(config: ml_collections.ConfigDict) -> int:
    """The number of masks of each text in a step; each is a row for the model."""
    return registry.STRATEGIES[config.masking.strategy].num_views(config.masking)


def masked_ratio(config: ml_collections.ConfigDict) -> float:
    """The share of the tokens of a row that are masked, on average over the run."""
    k = config.masking
    if k.ratio_schedule == 'constant':
        return registry.STRATEGIES[k.strategy].ratio(k.ratio, k)
    if k.ratio_schedule == 'diffusion':
        return (k.ratio + k.final_ratio) / 2
    # The length of an epoch is not known here. It matters only if one of the two durations is given in epochs, and the
    # other is not.
    total_steps = resolve_steps(config, 'total', steps_per_epoch=NOMINAL_STEPS_PER_EPOCH)
    if not total_steps:
        raise ConfigError('the length of the run is missing or 0: set total_steps, or another of the keys total_…')
    anneal_steps = (
        resolve_steps(config, 'masking.anneal', total_steps=total_steps, steps_per_epoch=NOMINAL_STEPS_PER_EPOCH) or 0
    )
    share = min(1.0, anneal_steps / total_steps) * (1 if k.ratio_schedule == 'staged' else 0.5)
    return (1 - share) * k.ratio + share * k.final_ratio


def attention_flops(config: ml_collections.ConfigDict) -> float:
    """The part of `step_flops` for attention scores and their products with values, in encoder and decoder."""
    return step_flops(config) - step_flops(config, document_share=0.0)
