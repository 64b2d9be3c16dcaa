"""The machine under a run: processes, devices, compilation cache, preemption and profiling."""

import contextlib
import math
import os
import pathlib
import signal
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mlm_jax import config as config_lib
from mlm_jax.files import paths
from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.parallel import peers

# sysexits' EX_TEMPFAIL: schedulers that requeue by exit status can tell a preemption from a failure.
PREEMPTED_EXIT_CODE = 75


def define_distributed_flags() -> None:
    """Defines the flags that `distributed` reads."""
    flags.DEFINE_bool(
        'distributed', False, 'Join the other processes of the run; found by themselves on TPU pods, SLURM, GKE.'
    )
    flags.DEFINE_string('coordinator_address', None, 'HOST:PORT of process 0, where it is not found by itself.')
    flags.DEFINE_integer('num_processes', None, 'Number of processes, where it is not found by itself.')
    flags.DEFINE_integer('process_id', None, 'Index of this process, where it is not found by itself.')
    flags.DEFINE_float(
        'peer_timeout_seconds', 60.0, 'Silence after which another process of the run counts as lost.', lower_bound=1.0
    )


@contextlib.contextmanager
def distributed(values: flags.FlagValues) -> Iterator[None]:
    """Joins the processes of the run, before anything touches a device, and watches them (parallel/peers.py)."""
    if values.distributed or values.coordinator_address:
        jax.distributed.initialize(
            values.coordinator_address, values.num_processes, values.process_id,
            heartbeat_timeout_seconds=_later(values.peer_timeout_seconds),
        )  # fmt: skip
    with peers.watched(values.peer_timeout_seconds):
        yield


def _later(timeout_seconds: float) -> int:
    """When JAX's own watch aborts, which names nobody: well behind ours."""
    return max(100, math.ceil(3 * timeout_seconds))


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in `directory` between runs; '' does not. ConfigError where it cannot lie there."""
    if directory:
        paths.check_compilation_cache(directory)
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(directory))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def make_mesh(config: ml_collections.ConfigDict, devices=None) -> Mesh:
    """The mesh of `config` over the devices that are there.

    Raises:
      ConfigError: when the accelerator asked for is missing, or the devices do not fit mesh or batch.
    """
    config = config_lib.decided(config)
    devices = jax.devices() if devices is None else devices
    platform = devices[0].platform
    if config.accelerator not in ('any', platform):
        raise ConfigError(
            f'accelerator={config.accelerator}, but JAX found only {platform} devices. Install the extra for it '
            '(cuda12, cuda13 or tpu) and check the driver, or set accelerator=any'
        )
    needed = {'cudnn': 'gpu', 'splash': 'tpu'}.get(config.model.attention_backend, platform)
    if platform != needed:
        raise ConfigError(
            f'the {config.model.attention_backend} attention backend needs a {needed}, not a {platform}; use xla'
        )
    try:
        mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    shards = mesh.shape[mesh_lib.DATA] * mesh.shape[mesh_lib.FSDP]
    if config.batch_size % (shards * config.num_microbatches):
        raise ConfigError(
            f'batch_size={config.batch_size} must be a multiple of mesh.data · mesh.fsdp · num_microbatches = '
            f'{mesh.shape[mesh_lib.DATA]} · {mesh.shape[mesh_lib.FSDP]} · {config.num_microbatches}'
        )
    return mesh


def gather(mine: np.ndarray) -> np.ndarray:
    """[P, …]: the array of each process, which all call at the same step."""
    return multihost_utils.process_allgather(mine)


class Preemption:
    """Notices that the machine is about to be taken away: SIGTERM, or SIGINT once.

    A program around the run that listens too, in Python, hears of it as well.
    """

    def __init__(self):
        self._signalled, self._before = False, {}
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number, frame) -> None:
        self._signalled = True
        signal.signal(number, signal.SIG_DFL)  # the second one ends the program at once
        before = self._before[number]
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def reached(self, step: int) -> bool:
        """Whether to save and stop at `step`; with several processes, all answer alike."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signalled


class Profiler:
    """Writes a trace of a window of steps, for TensorBoard or Perfetto."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path, first_step: int):
        """`config`: the part `profile` of a configuration; a run resumed past its start traces its first steps."""
        self._start = max(config.start_step, first_step)
        self._stop = self._start + config.num_steps
        self._directory = str(workdir / 'profile')

    def before(self, step: int) -> None:
        """Starts the trace, at its first step."""
        if step == self._start < self._stop:
            jax.profiler.start_trace(self._directory)

    def after(self, step: int, result) -> None:
        """Ends the trace behind its last step, when the arrays in `result` are there."""
        if self._start < self._stop == step + 1:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
