"""Descriptions of the devices of TPU pods, for which any machine with libtpu can compile programs."""

import importlib.util
import os

import jax
from jax.experimental import topologies

from mlm_jax.parallel.tpu_slices import layout_name, parts_of

_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',  # do not wait for the metadata server of a cloud machine
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',  # of the host that libtpu assumes; does not limit the topology
    'TPU_WORKER_ID': '0',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',  # the lock protects TPU devices, and there are none
}


def tpu_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, or of several. Programs can be compiled for them, but not run.

    Sets those environment variables of libtpu that are not set yet.

    Args:
      topology: the name of a slice, such as 'v5e-16', 'v6e-256' or 'v5p-64', or its layout, such as 'v5e:4x4'; with
        the number of slices in front, as in '2xv5e-256', if there are several.

    Raises:
      ValueError: if there is no such slice.
      ImportError: if libtpu is not installed.
    """
    num_slices, one = parts_of(topology)
    name, options = layout_name(one), {'num_slices': num_slices} if num_slices > 1 else {}
    if importlib.util.find_spec('libtpu') is None:
        raise ImportError("compiling for TPUs needs libtpu: pip install 'mlm_jax[tpu]'")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(topology_name=name, platform='tpu', **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f'libtpu does not know the topology {name!r}: {error}') from None
