"""The first run: masked language modelling on English prose found in the Python installation itself.

launch/demo
"""

from mlm_jax import config as config_lib


def get_config(argument: str = ''):
    """The configuration for '[key=value,…]'."""
    _, overrides = config_lib.parse_argument(argument, {'tiny': config_lib.SIZES['tiny']})
    config = config_lib.default_config()
    config.model.update(config_lib.SIZES['tiny'])
    config_lib.apply_overrides(config, overrides)
    return config
