"""Devices of TPU pods that are not there: programs for them compile on any machine with libtpu."""

import importlib.util
import os

import jax
from jax.experimental import topologies

from mlm_jax.parallel.slices import layout_name

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
