"""What fine-tuning compiles."""

import types

import jax
import numpy as np

from mlm_jax.finetuning.programs import init_params, make_module, scale_by_depth
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM

CONFIG = EncoderConfig(vocab_size=64, max_length=32, num_layers=2, width=32, num_heads=2, ffn_width=64)


def test_lower_layers_learn_more_slowly():
    problem = types.SimpleNamespace(loss='classification', num_outputs=2)
    module = make_module(MLM(CONFIG), problem, Recipe(dropout=0.0, head_dropout=0.5))
    assert (module.dropout, module.objective.config.dropout) == (0.5, 0.0)
    params = init_params(module, 1, None)
    scaled, _ = scale_by_depth(0.5, 2).update(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params), None)
    layers = scaled['objective']['encoder']['layers']['mlp']['up']['kernel']
    assert float(layers[0].max()) == 0.25 and float(layers[1].min()) == 0.5
    assert float(scaled['objective']['encoder']['token_embedding']['embedding'].max()) == 0.125
    assert float(scaled['objective']['encoder']['position_embedding']['embedding'].max()) == 0.125
    assert float(scaled['output']['kernel'].min()) == 1 and float(scaled['dense']['kernel'].min()) == 1
    unscaled, _ = scale_by_depth(1.0, 2).update(params, None)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(unscaled), jax.device_get(params))
