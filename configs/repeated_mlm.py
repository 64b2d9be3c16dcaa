"""Repeated MLM, ExLM's pilot study (arXiv 2501.13397): k copies of each token, each masked with probability p.

    python -m mlm_jax.prepare --config=configs/repeated_mlm.py:mini,data.directory=data/mini
    python -m mlm_jax.train --config=configs/repeated_mlm.py:mini,data.directory=data/mini --workdir=runs/repeated

It sets apart two things that masking does: p of the inputs are [MASK], which is no word, and p^k of the tokens have no
copy left to read. By default k = 2 and p = 0.15^(1/2), so that 15 % of the tokens are lost. `corruption=0.15,repeats=4`
keeps that and raises p to 62 %; `masking.ratio=0.4,repeats=4` gives p itself. The log has both shares as they came out:
`train/masked_ratio` and `train/corrupted_ratio`. Further arguments are those of `configs/mlm.py`.

Held-out losses are those of rows whose copies are masked with `evaluation.ratio`, which is set to p.

Not yet run to the end.
"""

import pathlib

from mlm_jax import config as config_lib


def get_config(argument: str = 'mini'):
    """The configuration for 'SIZE[,repeats=k][,corruption=c][,recipe=…][,key=value…]'."""
    size, overrides = config_lib.parse_argument(argument, {'mini': config_lib.SIZES['mini'], **config_lib.SIZES})
    config = config_lib.load(f'{pathlib.Path(__file__).with_name("mlm.py")}:{size}')
    if 'recipe' in overrides:
        config_lib.apply_recipe(config, overrides.pop('recipe'))
    try:
        repeats, corruption = int(overrides.pop('repeats', '2')), float(overrides.pop('corruption', '0.15'))
        possible = repeats >= 1 and 0 < corruption <= 1
    except ValueError:
        possible = False
    if not possible:
        raise config_lib.ConfigError('repeats must be a whole number, 1 or more, and corruption a share within 0 … 1')
    ratio = corruption ** (1 / repeats)
    config.masking.update(strategy='bernoulli', repeats=repeats, ratio=ratio, mask_fraction=1.0, random_fraction=0.0)
    config.evaluation.ratio = ratio
    config_lib.apply_overrides(config, overrides)
    if 'masking.ratio' in overrides and 'evaluation.ratio' not in overrides:
        config.evaluation.ratio = config.masking.ratio
    return config
