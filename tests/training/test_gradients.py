"""Every objective can be traced for a device with its own rows, with whole weights and with parts of them."""

import re

import jax
import jax.numpy as jnp
import pytest

from mlm_jax import config as config_lib
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.training import build
from mlm_jax.training.state import abstract_state


@pytest.mark.parametrize('gather', ['step', 'layer'])
@pytest.mark.parametrize('objective', sorted(OBJECTIVES))
def test_parts_of_weights_become_whole_before_their_use(tiny_config, objective, gather):
    tiny_config.objective, tiny_config.sharding, tiny_config.fsdp_gather = objective, 'fsdp', gather
    tiny_config.model.dropout = tiny_config.model.attention_dropout = 0.1
    tiny_config.num_microbatches = 2
    run = build.make_run(config_lib.completed(tiny_config), standard_vocabulary(64), num_rows=160)
    mesh = make_mesh(2, 4, 1)
    state = abstract_state(run.init, mesh, 'fsdp')
    with jax.set_mesh(mesh):
        new, _ = jax.eval_shape(run.train_step, state, jax.ShapeDtypeStruct((16, 32), jnp.int32))
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)


@pytest.mark.parametrize(('gather', 'expected'), [('step', {'f32'}), ('layer', {'f32', 'bf16'})])
def test_gradients_are_summed_over_devices_in_float32_unless_by_layer(tiny_config, gather, expected):
    tiny_config.sharding, tiny_config.fsdp_gather, tiny_config.model.dtype = 'fsdp', gather, 'bfloat16'
    run = build.make_run(config_lib.completed(tiny_config), standard_vocabulary(64), num_rows=160)
    mesh = make_mesh(2, 4, 1)
    state = abstract_state(run.init, mesh, 'fsdp')
    with jax.set_mesh(mesh):
        text = jax.jit(run.train_step).lower(state, jax.ShapeDtypeStruct((16, 32), jnp.int32)).as_text()
    sums = re.findall(r'"stablehlo.reduce_scatter".*?\) : \(tensor<[\dx]*x(\w+)>\)', text, re.DOTALL)
    assert set(sums) == expected
