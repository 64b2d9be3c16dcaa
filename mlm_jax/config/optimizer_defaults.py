"""Defaults that depend on the optimizer."""

import ml_collections

# The weight decay of each optimizer where `optimizer.weight_decay` gives none. That of StableAdamW is the share of a
# weight that an update at the peak learning rate removes; that of the others is multiplied by the learning rate first.
WEIGHT_DECAYS = {
    'adamw': 0.01,  # RoBERTa, arXiv 1907.11692; ExLM and MAE-LM alike
    'lamb': 0.01,  # arXiv 1904.00962
    'stable_adamw': 1e-5,  # ModernBERT, arXiv 2412.13663
    'muon': 0.01,  # AdamW's, as updates are as large as AdamW's; arXiv 2502.16982 has 0.1 at smaller learning rates
}


def weight_decay(optimizer: ml_collections.ConfigDict) -> float | None:
    """The weight decay of `config.optimizer`: the one given, or the optimizer's own; None for an unknown optimizer."""
    given = optimizer.weight_decay
    return WEIGHT_DECAYS.get(optimizer.name) if given is None else given
