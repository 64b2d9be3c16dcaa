"""The objectives by the name that configurations use. A new one is a module with MLM's interface and a line here."""

from mlm_jax.objectives.exlm import ExLM, ExLMConfig
from mlm_jax.objectives.mae_lm import MAELM, MAELMConfig
from mlm_jax.objectives.mlm import MLM

# name → (EncoderConfig, the part of the configuration of that name, Vocabulary) → Linen module
# Where rows are masked at ratios of their own, that of exlm is told so by `weigh_by_count`, which is no key.
OBJECTIVES = {
    'mlm': lambda encoder, options, vocabulary: MLM(encoder),
    'mae_lm': lambda encoder, options, vocabulary: MAELM(encoder, vocabulary.mask_id, MAELMConfig(**options)),
    'exlm': lambda encoder, options, vocabulary: ExLM(encoder, ExLMConfig(**options)),
}
