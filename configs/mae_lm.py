"""MAE-LM (arXiv 2302.02060): the encoder does not read 15 % of the tokens, and a decoder of 4 layers predicts them.

    python -m mlm_jax.prepare --config=configs/mae_lm.py:mini,data.directory=data/mine,data.corpus='text:corpus/*.txt'
    python -m mlm_jax.train --config=configs/mae_lm.py:mini,data.directory=data/mine --workdir=runs/mae_lm_mini

Sizes: tiny (2×128), mini (4×256), small (4×512), medium (8×512), base (12×768), large (24×1024), with the relative
position bias of the paper and, from `small` on, its post-LN encoder; `tiny` and `mini` have the recipe `muon` of
configs/mlm.py, with which small models learn sooner, unless `recipe=roberta`, the paper's, is given. `base` is the
paper's recipe for 125,000 steps of 2048 × 512 tokens, of which 10,000 are warm-up (8 %, whatever the length); `base++`
and `large++` are its recipes for 2,000,000 steps. The
released code does not contain the learning rate of `large++`; here, it is that of `base++`.

Arguments for ablations:
  the decoder: `mae_lm.decoder_layers=2` or `mae_lm.decoder_width=256`
  the encoder reads [MASK]: `mae_lm.masked_in_encoder=1.0`
  the same, but the decoder reads the embedding of [MASK]: `mae_lm.masked_in_encoder=1.0,mae_lm.reset_masked=true`
  the encoder reads a part of the [MASK] tokens: `mae_lm.masked_in_encoder=0.4`
  the encoder reads random tokens: `mae_lm.masked_in_encoder=1.0,masking.mask_fraction=0.0,masking.random_fraction=1.0`
  positions: `mae_lm.renumber_positions=true` or `model.relative_buckets=0`
Other arguments are keys of `mlm_jax/config/defaults.py`, e.g. `configs/mae_lm.py:base,num_microbatches=8`.
All keys `mae_lm.…` are explained in `mlm_jax/objectives/mae_lm_spec.py`.
`objective=mlm` trains the paper's baseline, the same encoder on all tokens.

`tiny` as it stands had 3.99 nats per masked token after 1,000 steps, 4.1 M tokens of text, of 2,048 pieces in rows of
64, as MLM had; frequencies alone give 6.19 (38b5fd4, one core of an AMD EPYC, 17 minutes beside other work). The
decoder of 4 layers is twice as deep as that encoder; at this size, a step takes 3.5 times the FLOPs of one of MLM.
With `mae_lm.decoder_layers=1`, 4,952 steps ended at 3.17, where MLM had 3.02 for the same FLOPs (e32480e, 37 minutes).
`mini` had 4.87 after 300 steps, 1.2 M tokens, where MLM had 4.71 (be4ea4a, 13 minutes; docs/results.md, "The size mini,
as it is shipped"). The sizes `base` and `large` have not been run yet.
"""

import ml_collections

from mlm_jax import config as config_lib

SIZES = {**config_lib.SIZES, 'base++': config_lib.SIZES['base'], 'large++': config_lib.SIZES['large']}


def get_config(argument: str = 'mini') -> ml_collections.ConfigDict:
    """The configuration for 'SIZE[,recipe=…][,key=value…]'; the default recipe follows the size."""
    size, overrides = config_lib.parse_argument(argument, SIZES, 'mini')
    config = config_lib.default_config()
    config.objective = 'mae_lm'
    config.model.update(SIZES[size])
    config.model.relative_buckets = 32
    config.masking.update(
        mask_fraction=1.0, random_fraction=0.0
    )  # for the masked positions that the encoder reads, if any
    config.optimizer.update(clip_norm=2.0, decay_mask='all')
    if size.startswith(('base', 'large')):  # for accelerators
        config.update(sequence_length=512, batch_size=2048, vocab_size=32768)
        config.model.dtype = 'bfloat16'
        config_lib.apply_overrides(config, {'total_steps': '125000', 'schedule.warmup_percent': '8'})
    config_lib.apply_rate_of_size(config, size)
    if size.endswith('++'):
        config_lib.apply_overrides(config, {'total_steps': '2000000', 'schedule.warmup_percent': '0.5'})
        config.optimizer.learning_rate = 2e-4
        config.model.relative_buckets = 64 if size == 'base++' else 128
        config.model.relative_max_distance = 128 if size == 'base++' else 256
    config_lib.apply_recipe(config, overrides.pop('recipe', config_lib.default_recipe(size)))
    config_lib.apply_overrides(config, overrides)
    return config
