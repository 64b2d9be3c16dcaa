"""The device mesh: three named axes, and how a batch lies on them."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Rows of a batch are split over `data` and `fsdp`; `fsdp` also splits the state; `tensor` the heads and hidden units.
DATA, FSDP, TENSOR = 'data', 'fsdp', 'tensor'
BATCH_AXES = (DATA, FSDP)


def mesh_shape(num_devices: int, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """Fills in the one axis given as −1.

    Raises:
      ValueError: when the axes do not use all devices exactly.
    """
    sizes = {DATA: data, FSDP: fsdp, TENSOR: tensor}
    free = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or known < 1 or num_devices % known or (not free and known != num_devices):
        text = ', '.join(f'mesh.{name}={size}' for name, size in sizes.items())
        raise ValueError(
            f'{text} does not fit {num_devices} devices: the product must be {num_devices}; at most one axis may be -1 '
            '(all devices that the others leave)'
        )
    if free:
        sizes[free[0]] = num_devices // known
    return sizes[DATA], sizes[FSDP], sizes[TENSOR]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices of all processes (or over `devices`) with automatic axes, for `jax.set_mesh`."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(len(devices), data, fsdp, tensor)
    return jax.make_mesh(shape, (DATA, FSDP, TENSOR), axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(x_Bx: jax.Array) -> jax.Array:
    """`x_Bx` with its rows over `data` and `fsdp` and all else whole; as it is outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x_Bx.shape[0] == 1:
        return x_Bx
    return jax.lax.with_sharding_constraint(x_Bx, PartitionSpec(BATCH_AXES, *(None,) * (x_Bx.ndim - 1)))
