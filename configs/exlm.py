"""ExLM (arXiv 2501.13397): each masked token becomes 4 states, and the likelihood is a sum over alignments to states.

    python -m mlm_jax.prepare --config=configs/exlm.py:mini,data.directory=data/mini
    python -m mlm_jax.train --config=configs/exlm.py:mini,data.directory=data/mini --workdir=runs/exlm_mini

Sizes: tiny (2×128), mini (4×256), small (4×512), medium (8×512), base (12×768), large (24×1024), with the encoder of
the released code: pre-LN, two-dimensional rotary positions, no LayerNorm on the embeddings. `base` and `large` have the
short recipe of the released code: 23,000 steps of 4096 × 128 tokens.

Arguments for ablations: `exlm.num_states=2`; `exlm.transitions=sparse` (only to states of later tokens) or `none`;
`exlm.transition_heads=1` (the paper's formula); `model.positions=rotary` (the copies of a token share one position);
`exlm.anchors=false`. `objective=mlm` trains the baseline of the paper: the same encoder, without expansion. Other
arguments are keys of `mlm_jax/config/defaults.py`, e.g. `configs/exlm.py:base,batch_size=256`.

On text, dense transitions from random weights stay at the frequencies of words for long. In small runs (2×64, rows of
32 of 512 pieces; docs/results.md, "ExLM on text") sparse ones leave them sooner than MLM does: begin with
`exlm.transitions=sparse`. The same run may go on with `exlm.transitions=dense`, and another may start from its weights
by `init_from`. At `tiny` with rows of 64 of 2,048 pieces, sparse ones were still at these frequencies after 1,000
steps of 32 rows at a rate of 2e-3. On molecules, dense ones train as they are.

The sizes `base` and `large` have not been run yet.
"""

import ml_collections

from mlm_jax import config as config_lib


def get_config(argument: str = 'mini') -> ml_collections.ConfigDict:
    """The configuration for 'SIZE[,recipe=…][,key=value…]'; the default recipe is that of the released code."""
    size, overrides = config_lib.parse_argument(argument, {'mini': config_lib.SIZES['mini'], **config_lib.SIZES})
    config = config_lib.default_config()
    config.objective = 'exlm'
    config.model.update(config_lib.SIZES[size])
    config.model.update(positions='rotary_2d', norm='pre', embedding_norm=False)
    config.masking.update(mask_fraction=1.0, random_fraction=0.0)
    config.optimizer.update(clip_norm=0.0)
    if size in ('base', 'large'):  # for accelerators
        config.update(sequence_length=128, batch_size=4096, vocab_size=32768)
        config.model.dtype = 'bfloat16'
        config.optimizer.learning_rate = 2e-3
        config_lib.apply_overrides(config, {'total_steps': '23000', 'schedule.warmup_steps': '1380'})
    if 'recipe' in overrides:
        config_lib.apply_recipe(config, overrides.pop('recipe'))
        config.model.positions = 'rotary_2d'
    config_lib.apply_overrides(config, overrides)
    return config
