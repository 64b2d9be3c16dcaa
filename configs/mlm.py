"""Masked language modeling (BERT, RoBERTa): 15 % of the tokens, of which 80 % [MASK], 10 % random, 10 % unchanged.

    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mini
    python -m mlm_jax.train --config=configs/mlm.py:mini,data.directory=data/mini --workdir=runs/mlm_mini

Sizes: tiny (2×128), mini (4×256), small (4×512), medium (8×512), base (12×768), large (24×1024). Other arguments
are keys of `mlm_jax/config/defaults.py`, e.g. `configs/mlm.py:base,recipe=modern,batch_size=256`; `recipe` is `roberta`
(post-LN, learned positions, GELU, dropout 0.1) or `modern` (ModernBERT's: pre-LN without a norm before the first
attention, RoPE, GeGLU, no biases, no dropout).
"""

import ml_collections

from mlm_jax import config as config_lib


def get_config(argument: str = 'mini') -> ml_collections.ConfigDict:
    """The configuration for 'SIZE[,recipe=…][,key=value…]'."""
    size, overrides = config_lib.parse_argument(argument, config_lib.SIZES)
    config = config_lib.default_config()
    config.model.update(config_lib.SIZES[size])
    if size in ('base', 'large'):  # for accelerators
        config.update(sequence_length=512, batch_size=2048, vocab_size=32768)
        config.model.dtype = 'bfloat16'
    config_lib.apply_recipe(config, overrides.pop('recipe', 'roberta'))
    config_lib.apply_overrides(config, overrides)
    return config
