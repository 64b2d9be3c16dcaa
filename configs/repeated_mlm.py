"""Repeated MLM, ExLM's pilot study (arXiv 2501.13397): k copies of each token, each masked with probability p.

    python -m mlm_jax.prepare --config=configs/repeated_mlm.py:mini,data.directory=data/mine,data.corpus='text:books/*'
    python -m mlm_jax.train --config=configs/repeated_mlm.py:mini,data.directory=data/mine --workdir=runs/repeated

It separates two effects of masking: the share p of the inputs is [MASK], which is not a word, and for the share p^k of
the tokens no copy is left to read, so that their information is lost. By default, k = 2 and p = 0.15^(1/2), so that
15 % of the tokens are lost. `corruption=0.15,repeats=4` also loses 15 %, but raises p to 62 %; the arguments
`masking.ratio=0.4,repeats=4` give p directly. The log has the measured shares, `train/masked_ratio` and
`train/corrupted_ratio`. Other arguments are those of `configs/mlm.py`.

Evaluations mask the copies of held-out rows with probability `evaluation.ratio`, which is set to p.

Evaluated and fine-tuned, such a model reads k copies of each token, too, whose vectors are averaged. Most masked copies
can be read from the other copy: with 15 % of the copies masked, `tiny` had 0.65 nats per masked copy after 1,000 steps
of 64 rows of 64 tokens of text, 2,048 pieces (bc1ff74, one core of an AMD EPYC, 7 minutes; docs/results.md, "The
recipes on text, as they are shipped"), and `mini` 0.69 after 300 steps (841d9f8, 30 minutes; "The size mini, as it is
shipped"). On molecules, with two seeds, neither more [MASK] nor more lost tokens made models that fine-tune worse, and
losing 2 % made worse ones (docs/results.md, "Repeated MLM, ExLM's pilot, on molecules").
"""

import pathlib

import ml_collections

from mlm_jax import config as config_lib


def get_config(argument: str = 'mini') -> ml_collections.ConfigDict:
    """The configuration for 'SIZE[,repeats=k][,corruption=c][,recipe=…][,key=value…]'."""
    size, overrides = config_lib.parse_argument(argument, config_lib.SIZES, 'mini')
    recipe = f',recipe={overrides.pop("recipe")}' if 'recipe' in overrides else ''
    config = config_lib.load(f'{pathlib.Path(__file__).with_name("mlm.py")}:{size}{recipe}')
    try:
        repeats, corruption = int(overrides.pop('repeats', '2')), float(overrides.pop('corruption', '0.15'))
        possible = repeats >= 1 and 0 < corruption <= 1
    except ValueError:
        possible = False
    if not possible:
        raise config_lib.ConfigError(
            'repeats must be a whole number, at least 1, and corruption must lie above 0 and be at most 1'
        )
    ratio = corruption ** (1 / repeats)
    config.masking.update(strategy='bernoulli', repeats=repeats, ratio=ratio, mask_fraction=1.0, random_fraction=0.0)
    config.evaluation.ratio = ratio
    config_lib.apply_overrides(config, overrides)
    if 'masking.ratio' in overrides and 'evaluation.ratio' not in overrides:
        config.evaluation.ratio = config.masking.ratio
    return config
