"""Several slices joined by a data-center network: only `data` crosses them, and it is said what does."""

import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.parallel import topology, tpu_slices
from mlm_jax.parallel.layout import check_within_slices
from mlm_jax.performance import ahead_of_time, collectives


@pytest.fixture
def mixed_slices(monkeypatch):
    """Devices with odd and with even ids are two slices of four, so that their order differs from that of ids."""
    monkeypatch.setattr(mesh_lib, 'slice_of', lambda device: device.id % 2)


@pytest.mark.usefixtures('mixed_slices')
@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 4, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)])
def test_the_outer_index_of_data_is_the_slice(shape):
    mesh = mesh_lib.make_mesh(*shape)
    assert mesh.devices.shape == shape and {d.id for d in mesh.devices.flat} == set(range(8))
    for index, devices in enumerate(mesh.devices):
        assert {d.id % 2 for d in devices.flat} == {index * 2 // shape[0]}


@pytest.mark.usefixtures('mixed_slices')
def test_hosts_with_gpus_may_share_fsdp_and_slices_of_tpus_may_not():
    (row,) = mesh_lib.make_mesh(1, 8, 1).devices[..., 0]
    assert [d.id for d in row] == [0, 2, 4, 6, 1, 3, 5, 7], 'slices stay together where they can'
    tpus = [SimpleNamespace(id=i, platform='tpu') for i in range(8)]
    with pytest.raises(ValueError, match='axis fsdp would cross .* 2 slices.*set mesh.data=-1,mesh.fsdp=4'):
        mesh_lib.make_mesh(1, 8, 1, devices=tpus)


@pytest.mark.parametrize(
    ('sizes', 'fsdp', 'tensor', 'cure'),
    [
        ([16, 16], 32, 1, 'mesh.data=-1,mesh.fsdp=16$'),
        ([16, 16], 8, 4, 'mesh.data=-1,mesh.fsdp=4$'),
        ([16, 8], 16, 1, 'mesh.data=-1,mesh.fsdp=8$'),
        ([4, 4], 1, 8, 'axis tensor would cross.* mesh.tensor to a divisor of 4$'),
    ],
)
def test_axes_that_would_cross_are_refused_with_what_fits(sizes, fsdp, tensor, cure):
    with pytest.raises(ValueError, match=cure):
        check_within_slices(sizes, fsdp, tensor)
    check_within_slices([sum(sizes)], fsdp, tensor)


def test_several_slices_have_a_name():
    assert tpu_slices.parts_of('2xv5e-256') == (2, 'v5e-256') and tpu_slices.parts_of('v5e:4x4') == (1, 'v5e:4x4')
    assert tpu_slices.size_of('2xv5e-256') == (512, 16 * 2**30)
    assert tpu_slices.size_of('3xv5p:2x2x4') == (48, 95 * 2**30)
    with pytest.raises(ValueError, match='at least 1, as in 2xv5e-16'):
        tpu_slices.parts_of('0xv5e-16')
    with pytest.raises(ValueError, match='several slices are written as 2xv5e-16'):
        tpu_slices.size_of('2-v5e-16')


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extra `tpu`)')
def test_a_gradient_is_scattered_within_a_slice_before_it_crosses():
    """Compiled for two slices of four TPUs: each device sends the network no more than its own quarter."""
    devices = topology.tpu_devices('2xv5e-4')
    assert [len(part) for part in mesh_lib.by_slice(devices)] == [4, 4]
    mesh = mesh_lib.make_mesh(-1, 4, 1, devices=devices)

    def place(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    gradient = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w))), out_shardings=place('fsdp'))
    weights = jax.ShapeDtypeStruct((512, 256), np.float32, sharding=place())
    rows = jax.ShapeDtypeStruct((1024, 512), np.float32, sharding=place(mesh_lib.BATCH_AXES))
    with ahead_of_time.no_compilation_cache():
        compiled = gradient.lower(weights, rows).compile(ahead_of_time.LOW_EFFORT)
    assert collectives.describe_collectives(compiled) == {'reduce-scatter': (1, 512 * 256 * 4)}
    assert collectives.between_slices(compiled) == {'all-reduce': (1, 512 * 256 * 4 // 4)}
