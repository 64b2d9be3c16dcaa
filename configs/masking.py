"""MLM with other masking strategies: the same encoder and recipe, but another choice of the masked tokens.

    python -m mlm_jax.prepare --config=configs/masking.py:spans,data.directory=data/mine,data.corpus='text:corpus/*.txt'
    python -m mlm_jax.train --config=configs/masking.py:spans,data.directory=data/mine --workdir=runs/spans

The first argument names the strategy: `words` (whole words), `spans` (SpanBERT's), `ngrams` (GPT-BERT's), `pmi`
(collocations), `frequency` (rare tokens more often), `least_masked`, `annealed` (30 → 15 %), `diffusion` (ratios from
0.1 to 100 %, weights 1/ratio), `complementary` (two disjoint masks), `fully_explored` (7 disjoint masks of a text in
one step) and `successive` (one of these 7 masks at each visit of a text). Each mask of a text is a row for the model,
but `batch_size` counts texts: it is half as large for `complementary`, and an eighth as large for `fully_explored`.
Other arguments are those of `configs/mlm.py`; the size is given as `size=base`.

Each was run at `tiny`, 1,000 steps of 64 rows of 64 tokens, 2,048 pieces. Held-out nats where single tokens are masked
(ea51583 and be4ea4a, one core of an AMD EPYC; docs/results.md, "Other masks, as they are shipped"): uniform masks 3.99,
`annealed` 3.78, `least_masked` 3.92, `complementary` 3.99, `fully_explored` 4.12, `frequency` 4.24, `diffusion` 4.45,
`words` 5.65, `spans` 7.31; frequencies alone 6.19. At equal FLOPs, which give `annealed` a tenth fewer steps, two seeds
cannot tell it from uniform masks ("More masks at first, and disjoint masks, at equal FLOPs"). In another run, with
uniform masks at 3.91, `ngrams` had 4.39 and `pmi` 7.97 (eb53662). `words`, `spans` and `pmi` never see a piece of a
word beside a masked one of the same word, and are surer than right there; their own losses fall, and BLiMP tells no
mask from another in models of this size. `successive` needs rows that are read several times, and is as good as uniform
masks there ("Fully explored masks of few texts", and "… in continued pretraining"). At `mini`, 300 steps,
`fully_explored` had 4.90 and `spans` 7.44, where MLM had 4.71 (841d9f8 and be4ea4a, 11 and 9 minutes; "The size mini,
as it is shipped"). Longer runs, and other strategies at `mini`, have not been made. With a draw between [MASK], random
and unchanged for each token of a unit (`masking.corruption_unit=token`), not one for the unit as here and in their
sources, `ngrams` had 4.36 and `pmi` 5.78 beside uniform masks at 3.99.
"""

import pathlib
from typing import Any

import ml_collections

from mlm_jax import config as config_lib

STRATEGIES: dict[str, dict[str, Any]] = {
    'words': dict(unit='word'),
    'spans': dict(unit='span', corruption_unit='unit'),
    'ngrams': dict(unit='ngram', corruption_unit='unit'),
    'pmi': dict(unit='pmi', corruption_unit='unit'),
    'frequency': dict(strategy='weighted'),
    'least_masked': dict(strategy='least_masked'),
    'annealed': dict(ratio=0.3, ratio_schedule='linear', final_ratio=0.15),
    'diffusion': dict(ratio=1.0, ratio_schedule='diffusion', final_ratio=0.001, mask_fraction=1.0, random_fraction=0.0),
    'complementary': dict(strategy='complementary'),
    'fully_explored': dict(strategy='fully_explored'),
    'successive': dict(strategy='fully_explored', fully_explored=dict(schedule='successive')),
}


def get_config(argument: str = 'words') -> ml_collections.ConfigDict:
    """The configuration for 'STRATEGY[,size=SIZE][,recipe=…][,key=value…]'."""
    name, overrides = config_lib.parse_argument(argument, STRATEGIES, 'words', 'strategies')
    size = overrides.pop('size', 'mini')
    recipe = f',recipe={overrides.pop("recipe")}' if 'recipe' in overrides else ''
    config = config_lib.load(f'{pathlib.Path(__file__).with_name("mlm.py")}:{size}{recipe}')
    config.masking.update(STRATEGIES[name])
    # Each text becomes several rows for the model; the number of these rows is at most that of configs/mlm.py.
    config.batch_size //= {'complementary': 2, 'fully_explored': 8}.get(name, 1)
    config_lib.apply_overrides(config, overrides)
    return config
