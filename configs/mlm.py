"""Masked language modeling (BERT, RoBERTa): 15 % of the tokens, of which 80 % [MASK], 10 % random, 10 % unchanged.

    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mine,data.corpus='text:corpus/*.txt'
    python -m mlm_jax.train --config=configs/mlm.py:mini,data.directory=data/mine --workdir=runs/mlm_mini

Sizes: tiny (2×128), mini (4×256), small (4×512), medium (8×512), base (12×768), large (24×1024). Other arguments
are keys of `mlm_jax/config/defaults.py`, e.g. `configs/mlm.py:base,recipe=modern,num_microbatches=8`. `recipe` is
`roberta` (post-LN, learned positions, GELU, dropout 0.1, AdamW; the default from `small` on), `modern` (as ModernBERT:
pre-LN without a norm before the first attention, RoPE, GeGLU, no biases, no dropout, StableAdamW) or `muon` (as modern,
with Muon; the default of `tiny` and `mini`). `base` and `large` have the length of fairseq's RoBERTa, 125,000 steps of
2048 × 512 tokens, 8 % warm-up, at which MAE-LM is compared with it.

On little text, `recipe=roberta` stays at the frequencies of words for long: at `tiny`, for at least 3 M tokens,
whatever the learning rate (docs/results.md, "Leaving the frequencies of words"). Under the others, the peak learning
rate follows the width. `tiny` as it stands had 3.99 nats per masked token after 1,000 steps, 4.1 M tokens, of 2,048
pieces in rows of 64, where `recipe=modern` had 4.94, `recipe=roberta` 6.21, and frequencies alone give 6.19 (38b5fd4
and bc1ff74, one core of an AMD EPYC, 200 s; "The recipes on text, as they are shipped"). `mini` with
`recipe=muon` had 3.48 after 28.7 M tokens of 8,192 pieces, where frequencies give 6.96 (ca49ecc). The sizes `base` and
`large` have not been run yet.
"""

import ml_collections

from mlm_jax import config as config_lib


def get_config(argument: str = 'mini') -> ml_collections.ConfigDict:
    """The configuration for 'SIZE[,recipe=…][,key=value…]'."""
    size, overrides = config_lib.parse_argument(argument, config_lib.SIZES, 'mini')
    config = config_lib.default_config()
    config.model.update(config_lib.SIZES[size])
    if size in ('base', 'large'):  # for accelerators
        config.update(sequence_length=512, batch_size=2048, vocab_size=32768)
        config.model.dtype = 'bfloat16'
        config_lib.apply_overrides(config, {'total_steps': '125000', 'schedule.warmup_percent': '8'})
    config_lib.apply_rate_of_size(config, size)
    config_lib.apply_recipe(config, overrides.pop('recipe', config_lib.default_recipe(size)))
    config_lib.apply_overrides(config, overrides)
    return config
