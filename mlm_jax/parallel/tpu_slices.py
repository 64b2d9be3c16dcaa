"""TPU slices by name: how many devices a slice has, in which layout, and how much memory each device has.

A topology is one slice, such as 'v5e-16' or 'v5e:4x4', or several that a data-center network joins: '2xv5e-16'.
"""

import dataclasses
import math
import re

# Number of chips → layout of the slice. The number in the name of a slice counts chips, but cores for v5p.
_LAYOUTS_2D = {4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
_LAYOUTS_3D = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8', 512: '8x8x8'}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of TPU.

    Attributes:
      per_chip: by how much each chip raises the number in the name of a slice.
      layouts: number of chips → layout.
      device_kind: the beginning of `jax.Device.device_kind`.
      memory_gib: the memory of a device; a part of it is not usable, which the compiler accounts for.
    """

    per_chip: int
    layouts: dict[int, str]
    device_kind: str
    memory_gib: int


_KINDS = {
    'v5e': _Kind(1, _LAYOUTS_2D, 'TPU v5 lite', 16),
    'v6e': _Kind(1, _LAYOUTS_2D, 'TPU v6 lite', 32),
    'v5p': _Kind(2, _LAYOUTS_3D, 'TPU v5', 95),  # must follow v5e, whose device_kind begins in the same way
}


def parts_of(topology: str) -> tuple[int, str]:
    """The number of slices of a topology, and the name of one of them: '2xv5e-16' → (2, 'v5e-16').

    Raises:
      ValueError: if the number is 0.
    """
    found = re.fullmatch(r'(\d+)x(\D.*)', topology)
    count, name = (int(found[1]), found[2]) if found else (1, topology)
    if not count:
        raise ValueError(f'unknown topology {topology!r}: the number of slices must be at least 1, as in 2x{name}')
    return count, name


def size_of(topology: str) -> tuple[int, int]:
    """The number of devices of all slices of a topology together, and the memory of one in bytes.

    Raises:
      ValueError: if there is no such slice.
    """
    num_slices, name = parts_of(topology)
    kind, _, layout = layout_name(name).partition(':')
    if kind not in _KINDS:
        raise ValueError(f'unknown topology {topology!r}: its kind must be one of {", ".join(_KINDS)}')
    if not all(side.isdigit() and int(side) for side in layout.split('x')):
        raise ValueError(f'unknown topology {topology!r}: write a layout as in {kind}:{_KINDS[kind].layouts[16]}')
    return num_slices * math.prod(map(int, layout.split('x'))), _KINDS[kind].memory_gib * 2**30


def layout_name(topology: str) -> str:
    """The layout of one slice, such as 'v5e:4x4' for 'v5e-16'; a name that is a layout is returned unchanged.

    Raises:
      ValueError: if there is no such slice.
    """
    if ':' in topology:
        return topology
    kind, _, number = topology.partition('-')
    if kind in _KINDS and number.isdigit():
        chips, rest = divmod(int(number), _KINDS[kind].per_chip)
        if not rest and chips in _KINDS[kind].layouts:
            return f'{kind}:{_KINDS[kind].layouts[chips]}'
    names = [f'{name}-{chips * kind.per_chip}' for name, kind in _KINDS.items() for chips in kind.layouts]
    raise ValueError(
        f'unknown topology {topology!r}: it must be one of {", ".join(names)}, or a layout such as v5e:4x4; '
        'several slices are written as 2xv5e-16'
    )


def memory_bytes(device_kind: str) -> int | None:
    """The memory of one TPU device, given its `jax.Device.device_kind`; None for kinds not listed here."""
    kinds = (kind for kind in _KINDS.values() if device_kind.startswith(kind.device_kind))
    return next((kind.memory_gib * 2**30 for kind in kinds), None)
