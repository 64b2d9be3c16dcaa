"""Every leaf of every state lies on the mesh as its preset says, or the state is refused."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.config import possible_values
from mlm_jax.config.step_flops import step_flops
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel import sharding
from mlm_jax.parallel.mesh import make_mesh, mesh_shape, split_rows
from mlm_jax.performance import ahead_of_time
from mlm_jax.training import build
from mlm_jax.training.state import abstract_state, create_state

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
OPTIMIZERS = possible_values.CHOICES['optimizer.name']


def get_config(argument: str):
    """The configuration of configs/mlm.py with this argument."""
    spec = importlib.util.spec_from_file_location('mlm_config', CONFIGS / 'mlm.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def make_run(argument: str):
    config = get_config(argument)
    return build.make_run(config_lib.resolve(config), standard_vocabulary(config.vocab_size), num_rows=160)


def specs(shardings) -> dict[str, tuple]:
    """Path → axes of each dimension."""
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    return {sharding.path_name(path): tuple(leaf.spec) for path, leaf in leaves}


def path(*names):
    return tuple(jax.tree_util.DictKey(name) for name in names)


@pytest.mark.smoke
@pytest.mark.parametrize('recipe', ['roberta', 'modern', 'roberta,model.relative_buckets=32'])
@pytest.mark.parametrize('size', config_lib.SIZES)
def test_every_parameter_has_a_place_under_every_preset(size, recipe):
    init = make_run(f'{size},recipe={recipe}').init
    shapes, mesh = jax.eval_shape(init), make_mesh(2, 2, 2)
    for preset in sharding.PRESETS:
        for name, axes in specs(sharding.state_shardings(shapes, preset, mesh, init.parameters).params).items():
            is_large = name.endswith('token_embedding/embedding') or ('layers' in name and name.endswith('kernel'))
            assert ('fsdp' in axes) == (is_large and preset != 'dp'), (name, axes)
            if preset != 'fsdp_tp':
                assert 'tensor' not in axes


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_optimizer_state_lies_as_its_parameter(optimizer):
    state = abstract_state(make_run(f'tiny,optimizer.name={optimizer}').init, make_mesh(2, 2, 2), 'fsdp_tp')
    shardings = jax.tree.map(lambda x: x.sharding, state)
    parameters = specs(shardings.params)
    counts = dict.fromkeys(parameters, 0)
    for name, axes in specs(shardings.opt_state).items():
        owner = next((p for p in parameters if name.endswith(f'/{p}')), None)
        if owner:
            counts[owner] += 1
            assert axes == parameters[owner], name
        else:
            assert not any(axes), name  # counters and constants
    kept = {'adamw': {2}, 'lamb': {2}, 'stable_adamw': {2}, 'muon': {1, 2}}[optimizer]  # moments per parameter
    assert set(counts.values()) == kept


def test_presets_really_split_the_state_over_devices():
    init = make_run('tiny,recipe=roberta,vocab_size=512').init
    mesh = make_mesh(2, 2, 2)
    shapes = {}
    with jax.set_mesh(mesh):
        for preset in sharding.PRESETS:
            params = create_state(init, mesh, preset).params
            leaves = jax.tree_util.tree_leaves_with_path(params)
            shapes[preset] = {sharding.path_name(p): x.addressable_shards[0].data.shape for p, x in leaves}
    up, qkv = 'encoder/layers/mlp/up/kernel', 'encoder/layers/attention/qkv/kernel'
    table = 'encoder/token_embedding/embedding'
    assert [shapes[preset][up] for preset in ('dp', 'fsdp', 'fsdp_tp')] == [(2, 128, 512), (2, 64, 512), (2, 64, 256)]
    assert shapes['fsdp_tp'][qkv] == (2, 64, 3, 1, 64)
    assert [shapes[preset][table] for preset in ('dp', 'fsdp', 'fsdp_tp')] == [(512, 128), (512, 64), (256, 64)]


def test_tensor_parallel_layers_sum_activations_four_times():
    mesh = 'sharding=fsdp_tp,mesh.data=1,mesh.fsdp=2,mesh.tensor=4,num_microbatches=4'
    config = get_config(f'tiny,recipe=roberta,vocab_size=512,batch_size=64,model.num_heads=4,model.dropout=0.0,{mesh}')
    needs = ahead_of_time.requirements(ahead_of_time.compile_train_step(config, jax.devices()))
    assert needs.flops * 8 == pytest.approx(step_flops(config), rel=0.05), 'all products are done once, on one device'
    activations = 64 // 4 // 2 * 128 * 128 * 4  # of one microbatch on one device
    assert needs.collectives['all-reduce'][1] == pytest.approx(4 * 2 * 4 * activations, rel=0.05)


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ValueError, match='no sharding rule matches the parameter encoder/mystery/kernel'):
        sharding.partition_spec(path('encoder', 'mystery', 'kernel'), (8, 8), 'dp', make_mesh(8))


def test_a_rule_of_other_dimensions_is_refused():
    with pytest.raises(ValueError, match='has 2 dimensions, but mlp/up/kernel has shape'):
        sharding.partition_spec(path('mlp', 'up', 'kernel'), (8, 8, 8), 'dp', make_mesh(8))


def test_one_axis_for_two_dimensions_is_refused(monkeypatch):
    monkeypatch.setitem(sharding.PRESETS, 'twice', {'width': 'fsdp', 'hidden': 'fsdp'})
    with pytest.raises(ValueError, match=r"preset 'twice' asks for one mesh axis twice for mlp/up/kernel"):
        sharding.partition_spec(path('mlp', 'up', 'kernel'), (8, 8), 'twice', make_mesh(1, 8))


def test_a_size_that_the_axis_does_not_divide_is_refused():
    message = r"has 12 width, .*'fsdp' of size 8 does not divide; choose a multiple of 8 or .*mesh.data=-1,mesh.fsdp=4"
    with pytest.raises(ConfigError, match=message):
        sharding.partition_spec(path('mlp', 'up', 'kernel'), (12, 8), 'fsdp', make_mesh(1, 8))


@pytest.mark.parametrize('axes', [(-1, -1, 1), (3, 1, 1), (2, 2, 1), (0, 1, 1)])
def test_axes_that_do_not_use_all_devices_are_refused(axes):
    with pytest.raises(ValueError, match='does not fit 8 devices'):
        mesh_shape(8, *axes)
    assert mesh_shape(8, -1, 2, 2) == (2, 2, 2)


def test_gathered_weights_are_whole_along_the_width_and_their_gradients_are_not():
    weights = {'mlp': {'up': {'kernel': jnp.arange(64.0).reshape(8, 8), 'bias': jnp.ones(8)}}}
    mesh = make_mesh(2, 2, 2)
    shardings = sharding.state_shardings(weights, 'fsdp_tp', mesh)

    def loss(w):
        return jnp.sum(sharding.gather_width(w, 8)['mlp']['up']['kernel'] ** 2)

    with jax.set_mesh(mesh):
        placed = jax.device_put(weights, shardings)
        gathered = jax.jit(sharding.gather_width, static_argnums=1)(placed, 8)['mlp']['up']['kernel']
        grads = jax.jit(jax.grad(loss))(placed)['mlp']['up']['kernel']
    assert gathered.addressable_shards[0].data.shape[0] == 8
    assert grads.addressable_shards[0].data.shape[0] == 4
    np.testing.assert_array_equal(grads, 2 * weights['mlp']['up']['kernel'])
    assert sharding.gather_width(weights, 8) is weights  # outside a mesh


def test_rows_stay_split_on_a_mesh():
    x = jnp.zeros((8, 6))
    assert split_rows(x) is x
    with jax.set_mesh(make_mesh(2, 2, 2)):
        assert jax.jit(split_rows)(x).addressable_shards[0].data.shape == (2, 6)
        assert split_rows(x[:1]) is not None
