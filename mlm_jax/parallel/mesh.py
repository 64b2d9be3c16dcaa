"""The device mesh with its three named axes, and how a batch is sharded over them."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mlm_jax.parallel.layout import BATCH_AXES, DATA, FSDP, TENSOR, check_within_slices, mesh_shape

_AXES, _TYPES = (DATA, FSDP, TENSOR), (AxisType.Auto,) * 3


def slice_of(device: jax.Device) -> int:
    """The index of the slice of a device: of TPUs that are joined by fast links, or of GPUs in one host."""
    return getattr(device, 'slice_index', 0)


def by_slice(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each slice, in the order of the slices; within a slice, they keep their order."""
    return [[d for d in devices if slice_of(d) == index] for index in sorted(set(map(slice_of, devices)))]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with automatic axes, for `jax.set_mesh`, over `devices` or over all devices of all processes.

    If the devices are in several slices, each slice holds consecutive indices of `data`, so that `fsdp` and `tensor`
    stay within slices. Between hosts with GPUs, which JAX counts as slices too, `fsdp` and `tensor` may cross: the
    networks there differ, and some are fast.

    Raises:
      ValueError: if the product of the sizes is not the number of devices, or an axis other than `data` would cross
        slices of TPUs.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(len(devices), data, fsdp, tensor)
    slices = by_slice(devices)
    if len(slices) == 1:
        return jax.make_mesh(shape, _AXES, axis_types=_TYPES, devices=devices)
    sizes, (_, fsdp, tensor) = [len(part) for part in slices], shape
    if devices[0].platform == 'tpu':
        check_within_slices(sizes, fsdp, tensor)
    if any(size % (fsdp * tensor) for size in sizes):
        return Mesh(np.array([d for part in slices for d in part]).reshape(shape), _AXES, axis_types=_TYPES)
    # JAX orders the devices of each slice by its physical layout.
    grids = [
        jax.make_mesh((len(part) // (fsdp * tensor), fsdp, tensor), _AXES, axis_types=_TYPES, devices=part).devices
        for part in slices
    ]
    return Mesh(np.concatenate(grids), _AXES, axis_types=_TYPES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows are split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding that puts the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows_are_local() -> bool:
    """Whether this is traced for each device with its own rows, as `training/gradients.py` does with the model."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def split_rows(x_Bx: jax.Array) -> jax.Array:
    """`x_Bx` with its rows sharded over `data` and `fsdp` and other axes replicated.

    Outside a mesh, and where rows are local already, it is unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x_Bx.shape[0] == 1 or rows_are_local():
        return x_Bx
    return jax.lax.with_sharding_constraint(x_Bx, PartitionSpec(BATCH_AXES, *(None,) * (x_Bx.ndim - 1)))
