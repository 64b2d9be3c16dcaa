"""Devices of TPU pods that are not there: programs for them compile on any machine with libtpu."""

import importlib.util
import os

import jax
from jax.experimental import topologies

# Chips → layout of a slice. The number in a name counts chips; for v5p, the two cores of each.
_LAYOUTS_2D = {4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
_LAYOUTS_3D = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8', 512: '8x8x8'}
_KINDS = {'v5e': (1, _LAYOUTS_2D), 'v6e': (1, _LAYOUTS_2D), 'v5p': (2, _LAYOUTS_3D)}

# Memory of a chip in GiB, by the start of `device_kind`; the compiler itself refuses what exceeds the usable part.
_MEMORY_GIB = {'TPU v5 lite': 16, 'TPU v6 lite': 32, 'TPU v5': 95}

_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',  # no metadata server answers here
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',  # of the host that libtpu believes to be on; no limit on what is compiled
    'TPU_WORKER_ID': '0',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',  # the lock guards devices, of which there are none
}


def tpu_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, to compile for: they run nothing.

    Sets environment variables that libtpu reads, where they are not set.

    Args:
      topology: a slice by its name, such as 'v5e-16', 'v6e-256' or 'v5p-64', or by its layout, such as 'v5e:4x4'.

    Raises:
      ValueError: for a slice that there is not.
      ImportError: when libtpu is not installed.
    """
    name = layout_name(topology)
    if importlib.util.find_spec('libtpu') is None:
        raise ImportError("compiling for TPUs needs libtpu: pip install 'mlm_jax[tpu]'")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(topology_name=name, platform='tpu').devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f'libtpu knows no topology {name!r}: {error}') from None


def layout_name(topology: str) -> str:
    """'v5e:4x4' for 'v5e-16'; names that are layouts stay as they are."""
    if ':' in topology:
        return topology
    kind, _, number = topology.partition('-')
    if kind in _KINDS and number.isdigit():
        per_chip, layouts = _KINDS[kind]
        if layout := layouts.get(int(number) / per_chip):
            return f'{kind}:{layout}'
    names = [f'{k}-{chips * per_chip}' for k, (per_chip, layouts) in _KINDS.items() for chips in layouts]
    raise ValueError(f'unknown topology {topology!r}: it is one of {", ".join(names)}, or a layout such as v5e:4x4')


def memory_bytes(device_kind: str) -> int | None:
    """Memory of one device of a TPU kind; None for kinds not listed here."""
    for start, gib in _MEMORY_GIB.items():
        if device_kind.startswith(start):
            return gib * 2**30
    return None
