"""Default values that depend on the optimizer."""

import ml_collections

# The weight decay of each optimizer if `optimizer.weight_decay` is None. For StableAdamW, it is the share of a weight
# that an update at the peak learning rate removes; the other optimizers multiply it by the learning rate.
WEIGHT_DECAYS = {
    'adamw': 0.01,  # RoBERTa, arXiv 1907.11692; also ExLM and MAE-LM
    'lamb': 0.01,  # arXiv 1904.00962
    'stable_adamw': 1e-5,  # ModernBERT, arXiv 2412.13663
    'muon': 0.01,  # as AdamW, whose updates have the same size; arXiv 2502.16982 has 0.1 at smaller learning rates
}


def weight_decay(optimizer: ml_collections.ConfigDict) -> float:
    """The weight decay in `config.optimizer`, or the default of its optimizer; KeyError for an unknown optimizer."""
    given = optimizer.weight_decay
    return WEIGHT_DECAYS[optimizer.name] if given is None else given
