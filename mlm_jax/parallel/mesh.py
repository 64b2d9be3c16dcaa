"""The device mesh with its three named axes, and how a batch is sharded over them."""

from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mlm_jax.parallel.layout import BATCH_AXES, DATA, FSDP, TENSOR, mesh_shape


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with automatic axes, for `jax.set_mesh`, over `devices` or over all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(len(devices), data, fsdp, tensor)
    return jax.make_mesh(shape, (DATA, FSDP, TENSOR), axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows are split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding that puts the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(x_Bx: jax.Array) -> jax.Array:
    """`x_Bx` with its rows sharded over `data` and `fsdp` and other axes replicated; unchanged outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x_Bx.shape[0] == 1:
        return x_Bx
    return jax.lax.with_sharding_constraint(x_Bx, PartitionSpec(BATCH_AXES, *(None,) * (x_Bx.ndim - 1)))
