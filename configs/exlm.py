"""ExLM (arXiv 2501.13397): each masked token becomes 4 states, and the likelihood is a sum over alignments to states.

    python -m mlm_jax.prepare --config=configs/exlm.py:mini,data.directory=data/mine,data.corpus='text:corpus/*.txt'
    python -m mlm_jax.train --config=configs/exlm.py:mini,data.directory=data/mine --workdir=runs/exlm_mini

Sizes: tiny (2×128), mini (4×256), small (4×512), medium (8×512), base (12×768), large (24×1024), with the encoder of
the released code: pre-LN, two-dimensional rotary positions, no LayerNorm on the embeddings. `base` and `large` have the
short recipe of the released code: 23,000 steps of 4096 × 128 tokens, 6 % warm-up. `tiny` and `mini` are trained by
Muon, unless `recipe=roberta`, which is AdamW here, or another recipe is given.

Arguments for ablations: `exlm.num_states=2`; `exlm.transitions=sparse` (only to states of later tokens) or `none`;
`exlm.transition_heads=1` (the paper's formula); `model.positions=rotary` (the copies of a token share one position);
`exlm.alignments=1` (one through all documents of a row, as in the paper); `exlm.anchors=false` (which also means one
through all documents). `objective=mlm` trains the baseline of the paper: the same encoder, without expansion. Other
arguments are keys of `mlm_jax/config/defaults.py`, e.g. `configs/exlm.py:base,num_microbatches=8`. All keys
`exlm.…` are explained in `mlm_jax/objectives/exlm_spec.py`.

On text, dense transitions, those of the paper, hardly leave the frequencies of words if they begin from random weights:
they spread the signal of a target over the states of several tokens. At `tiny` and `mini`, the first half of a run
therefore has sparse ones: `exlm.sparse_percent=50`. `exlm.sparse_percent=0` is the paper's, at these sizes, too. At
`tiny` as it stands, this ended at 4.89 nats per masked token after 1,000 steps, 4.1 M tokens, of 2,048 pieces in rows
of 64, where MLM has 3.99 (configs/mlm.py) and frequencies alone give 6.19 (38b5fd4, one core of an AMD EPYC, 8
minutes); dense transitions alone had stayed at 6.21 in a run of 2 M tokens (docs/results.md, "Leaving the frequencies
of words"). 2,800 steps, 11.5 M tokens, ended at 3.80, where MLM had 3.02 for the same FLOPs (e32480e, 34 minutes;
"MLM, MAE-LM and ExLM on text, three times as long"). `mini` had just left the frequencies after 300 steps, 6.15
(be4ea4a, 13 minutes). Runs on molecules begin sparse, too; configs/smiles.py says why.

The sizes `base` and `large` have not been run yet.
"""

import ml_collections

from mlm_jax import config as config_lib


def get_config(argument: str = 'mini') -> ml_collections.ConfigDict:
    """The configuration for 'SIZE[,recipe=…][,key=value…]'; `tiny` and `mini` have Muon unless a recipe is given."""
    size, overrides = config_lib.parse_argument(argument, config_lib.SIZES, 'mini')
    config = config_lib.default_config()
    config.objective = 'exlm'
    config.model.update(config_lib.SIZES[size])
    config.model.update(positions='rotary_2d', norm='pre', embedding_norm=False)
    config.masking.update(mask_fraction=1.0, random_fraction=0.0)
    config.optimizer.update(clip_norm=0.0)
    config.exlm.alignments = 2
    if size in config_lib.SMALL:
        config.exlm.sparse_percent = 50.0
        if 'recipe' not in overrides:
            config_lib.apply_muon(config)
    if size in ('base', 'large'):  # for accelerators
        config.update(sequence_length=128, batch_size=4096, vocab_size=32768)
        config.model.dtype = 'bfloat16'
        config.optimizer.learning_rate = 2e-3
        config_lib.apply_rate_of_size(config, size)
        config.optimizer.decay_mask = 'all'
        config_lib.apply_overrides(config, {'total_steps': '23000', 'schedule.warmup_percent': '6'})
    if 'recipe' in overrides:
        config_lib.apply_recipe(config, overrides.pop('recipe'))
        config.model.positions = 'rotary_2d'
    config_lib.apply_overrides(config, overrides)
    return config
