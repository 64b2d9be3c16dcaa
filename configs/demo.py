"""The first run: masked language modelling on English prose found in the Python installation itself.

    launch/demo

A 2×128 encoder of the modern recipe with Muon, which leaves the plateau of single-word frequencies after a few hundred
steps, where AdamW stays for thousands.
"""

from mlm_jax import config as config_lib


def get_config(argument: str = ''):
    """The configuration for '[key=value,…]'."""
    _, overrides = config_lib.parse_argument(argument, {'tiny': config_lib.SIZES['tiny']})
    config = config_lib.default_config()
    config.model.update(config_lib.SIZES['tiny'])
    config_lib.apply_recipe(config, 'modern')
    config.update(batch_size=16, total_steps=1500)
    config.data.validation_percent = 5.0  # a small corpus
    config.optimizer.update(name='muon', learning_rate=5e-3, weight_decay=0.01)
    config.masking.update(mask_fraction=1.0, random_fraction=0.0)
    config.logging.every_steps = 50
    config_lib.apply_overrides(config, overrides)
    return config
