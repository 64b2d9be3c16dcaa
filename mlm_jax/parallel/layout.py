"""The axes of the device mesh and their sizes; this file does not import JAX."""

import math
from collections.abc import Sequence

# `data` and `fsdp` split the rows of a batch; `fsdp` also splits the state; `tensor` splits heads and hidden units.
DATA, FSDP, TENSOR = 'data', 'fsdp', 'tensor'
BATCH_AXES = (DATA, FSDP)


def mesh_shape(num_devices: int, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """The sizes of the axes; at most one may be −1, and gets all devices that the others leave.

    Raises:
      ValueError: if the product of the sizes is not the number of devices.
    """
    sizes = {DATA: data, FSDP: fsdp, TENSOR: tensor}
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or known < 1 or num_devices % known or (not free and known != num_devices):
        text = ', '.join(f'mesh.{name}={size}' for name, size in sizes.items())
        raise ValueError(
            f'{text} does not fit {num_devices} devices: the product must be {num_devices}; at most one axis may be '
            '-1, which means all devices that the other axes leave'
        )
    if free:
        sizes[free[0]] = num_devices // known
    return sizes[DATA], sizes[FSDP], sizes[TENSOR]


def check_within_slices(slice_sizes: Sequence[int], fsdp: int, tensor: int) -> None:
    """Checks that `fsdp` and `tensor` stay within slices, whose devices have fast links; only `data` may cross them.

    `fsdp` gathers all weights in every step and `tensor` sums activations in every layer: both would wait for the
    data-center network that joins slices. `data` only sums gradients.

    Args:
      slice_sizes: the number of devices of each slice.
      fsdp: the size of this axis, at least 1.
      tensor: the size of this axis, at least 1.

    Raises:
      ValueError: if an axis would cross slices.
    """
    within = math.gcd(*slice_sizes)
    if len(slice_sizes) == 1 or within % (fsdp * tensor) == 0:
        return
    axis, cure = (
        ('fsdp', f'mesh.data=-1,mesh.fsdp={within // tensor}')
        if within % tensor == 0
        else ('tensor', f'mesh.tensor to a divisor of {within}')
    )
    raise ValueError(
        f'mesh.fsdp={fsdp},mesh.tensor={tensor}: the axis {axis} would cross the data-center network between '
        f'{len(slice_sizes)} slices; its groups must lie within slices of {within} devices, and only mesh.data may '
        f'cross them: set {cure}'
    )
