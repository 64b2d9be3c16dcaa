"""Pretraining on SMILES: rows of molecules, written as atoms, bonds and ring closures, with any of three objectives.

    python -m mlm_jax.prepare --config=configs/smiles.py:exlm,data.corpus='smi:smiles/*.smi'
    python -m mlm_jax.train --config=configs/smiles.py:exlm,data.corpus='smi:smiles/*.smi' --workdir=runs/smiles_exlm

The first argument is the objective: `exlm`, `mlm` or `mae_lm`. All have the encoder of ExLM (arXiv 2501.13397: pre-LN,
two-dimensional rotary positions) and replace 15 % of the tokens by [MASK]; `mlm` is the paper's baseline with the same
encoder. All can use the same prepared directory. `base` (12×768) and `large` (24×1024, at two thirds of the rate) have
the recipe of another project of the paper's authors, as the paper's own recipe is not published: 120,000 steps of
256 × 128 tokens, learning rate 5e-4 after 10,000 steps of warm-up, gradients clipped at 0.1. The other sizes, of which
`mini` (4×256) is the default, have the defaults of `mlm_jax/config/defaults.py`; `tiny` and `mini` are trained by Muon.

A corpus is lines of SMILES, `smi:GLOB`, or a column of tables, `data.corpus=csv:GLOB,data.text_key=smiles`. A
vocabulary of 512 ids suffices: half a million molecules of ChEMBL, MUV, DUD and HIV have 258 different tokens; the
other ids are unused. A row holds two or three molecules, which do not attend to each other; molecules of more than 126
tokens (0.6 %) are split. `data.smiles_copies=2` adds two random SMILES of each molecule (extra `smiles`). Other
arguments are keys of `mlm_jax/config/defaults.py`, or, if they begin with the name of an objective, as
`exlm.num_states` does, of its `mlm_jax/objectives/*_spec.py`.

ExLM of `tiny` and `mini` begins with sparse transitions (`exlm.sparse_percent=50`), as in configs/exlm.py: dense ones
alone, the paper's, which `exlm.sparse_percent=0` gives, may settle on alignments in which states stand for other tokens
than their own, as one of two such runs did. At `tiny`, with `batch_size=16`, 800 steps ended at 0.91 nats per masked
token, at 0.82 on rows prepared anew, and at 1.33 where that happened; MLM had 0.79 (ea51583 and e32480e, one core of an
AMD EPYC; docs/results.md, "ExLM's states on molecules" and the section behind it). At the FLOPs of 1,000 steps of ExLM,
0.77 nats, MLM had 0.59 and MAE-LM with one decoder layer 0.62 (e32480e; "Fine-tuning on molecules with a grid"). `mlm`
of size `mini` left the frequencies of tokens within 20 steps, and had 1.37 after 100; `mae_lm` had 1.71, and `exlm`
1.89 (e32480e and 841d9f8; "The size mini, as it is shipped"). `base` has not been run yet.
Muon's rate of 5e-3 is the best of three for `exlm` at widths of 128 and 256, and nearly that for `mae_lm` ("Learning
rates of MAE-LM and ExLM, and the width").
"""

import ml_collections

from mlm_jax import config as config_lib

OBJECTIVES: dict[str, dict] = {'exlm': {}, 'mlm': {}, 'mae_lm': {}}


def get_config(argument: str = 'exlm') -> ml_collections.ConfigDict:
    """The configuration for 'OBJECTIVE[,size=SIZE][,key=value…]'."""
    objective, overrides = config_lib.parse_argument(argument, OBJECTIVES, 'exlm', 'objectives')
    size = overrides.pop('size', 'mini')
    if size not in config_lib.SIZES:
        raise config_lib.ConfigError(f'unknown size {size!r}: it must be one of {", ".join(config_lib.SIZES)}')
    config = config_lib.default_config()
    config.update(objective=objective, vocab_size=512, sequence_length=128)
    config.data.update(directory='data/smiles', corpus='smi:smiles/*.smi')
    config.tokenizer.model = 'smiles'
    config.model.update(config_lib.SIZES[size])
    config.model.update(positions='rotary_2d', norm='pre', embedding_norm=False)
    config.masking.update(mask_fraction=1.0, random_fraction=0.0)
    config.exlm.alignments = 4  # a row holds two or three molecules, seldom four
    config.mae_lm.kept_margin = 0.25  # with short molecules, up to 32 of 128 tokens are [CLS], [SEP] or padding
    if size in config_lib.SMALL:
        config_lib.apply_muon(config)
        config.exlm.sparse_percent = 50.0
    if size in ('base', 'large'):  # for accelerators
        config.batch_size = 256
        config.model.dtype = 'bfloat16'
        config.optimizer.update(learning_rate=5e-4, clip_norm=0.1)
        config_lib.apply_rate_of_size(config, size)
        config_lib.apply_overrides(config, {'total_steps': '120000', 'schedule.warmup_percent': f'{100 / 12}'})
    config_lib.apply_overrides(config, overrides)
    return config
