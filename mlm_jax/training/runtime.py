"""The machine that a run uses: processes, devices, compilation cache, preemption and profiling."""

import contextlib
import math
import os
import pathlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mlm_jax.files import paths
from mlm_jax.files.errors import ConfigError
from mlm_jax.files.mirror import Mirror
from mlm_jax.parallel import joining, peers
from mlm_jax.parallel import mesh as mesh_lib

flags.disclaim_key_flags()  # the flags that are defined here belong to the program that calls for them

# EX_TEMPFAIL of sysexits.h, so that schedulers that requeue by exit status can tell a preemption from a failure.
PREEMPTED_EXIT_CODE = 75


def define_distributed_flags() -> None:
    """Defines the command-line flags that `distributed` reads."""
    flags.DEFINE_bool(
        'distributed',
        False,
        'Join the other processes of the run; TPU pods, Slurm and the TPU nodes of GKE need no other flags for it.',
    )
    flags.DEFINE_string('coordinator_address', None, 'HOST:PORT of process 0, if it is not detected automatically.')
    flags.DEFINE_integer('num_processes', None, 'Number of processes, if it is not detected automatically.')
    flags.DEFINE_integer('process_id', None, 'Index of this process, if it is not detected automatically.')
    flags.DEFINE_float(
        'join_timeout_seconds',
        300.0,
        'Seconds to wait at the start for the other processes of the run.',
        lower_bound=1.0,
    )
    flags.DEFINE_float(
        'peer_timeout_seconds',
        60.0,
        'Seconds without a heartbeat after which another process of the run counts as lost.',
        lower_bound=1.0,
    )


@contextlib.contextmanager
def distributed(values: flags.FlagValues) -> Iterator[None]:
    """Joins the processes of the run, and watches them (parallel/peers.py); must precede any use of a device."""
    if values.distributed or values.coordinator_address:
        joining.join(
            values.coordinator_address, values.num_processes, values.process_id,
            values.join_timeout_seconds, _later(values.peer_timeout_seconds),
        )  # fmt: skip
    with peers.watched(values.peer_timeout_seconds):
        yield


def _later(timeout_seconds: float) -> int:
    """The heartbeat timeout of JAX itself, whose abort does not name the lost process: well after that of `peers`."""
    return max(100, math.ceil(3 * timeout_seconds))


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in `directory`; '' means no cache. ConfigError if a cache cannot be there."""
    if directory:
        paths.check_compilation_cache(directory)
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(directory))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def make_mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a resolved configuration describes, over `devices` or over all devices.

    Raises:
      ConfigError: if the requested accelerator is missing, or the devices do not fit the mesh or the batch.
    """
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
    """[P, …]: the arrays of all P processes, each of which must call this at the same step."""
    return multihost_utils.process_allgather(mine)


class Preemption:
    """Notices a preemption: SIGTERM, which announces that the machine will be taken away, or a first SIGINT.

    SIGTERM may come again while the run saves: Slurm sends it to a program and to srun, which hands it on. Python
    signal handlers that were installed before are called, too.

    Once a process has joined others, or itself alone with --distributed, JAX takes the signal in C++ code. It answers
    True at one number only: the largest at which any process has asked so far, plus 1.
    """

    def __init__(self, first_step: int = 0) -> None:
        """Listens from now on; all processes must call this, before a loop that begins at `first_step`."""
        self._signaled = _was_signaled_before(first_step)
        self._before: dict[int, Any] = {}
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self._signaled = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second one ends the program at once
        before = self._before[number]
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def reached(self, step: int) -> bool:
        """Whether to save and stop at `step`; the answer is the same on all processes."""
        return self._signaled or multihost_utils.reached_preemption_sync_point(step)


def _was_signaled_before(first_step: int) -> bool:
    """Whether SIGTERM came to any process while it started, of which a loop from `first_step` on would not learn."""
    if first_step < 2:  # nobody has asked yet, so the answer comes at step 1
        return False
    # At 1 JAX tells of a signal until now; it tells of one from now on at the number after the last that is asked here.
    answers = [multihost_utils.reached_preemption_sync_point(number) for number in sorted({1, first_step - 1})]
    return bool(gather(np.asarray(any(answers))).any())


class Profiler:
    """Writes a profiler trace of some steps, for TensorBoard or Perfetto."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path, first_step: int, total_steps: int):
        """`config` is `profile` of a configuration; a run that resumes after `start_step` traces its first steps."""
        self._start = max(config.start_step, first_step)
        self._stop = min(self._start + config.num_steps, total_steps)
        self._directory = workdir / 'profile'
        self._mirror: Mirror | None = None  # while there is a trace

    def before(self, step: int) -> None:
        """Starts the trace if `step` is its first step."""
        if step == self._start < self._stop:
            mirror = Mirror(self._directory)
            jax.profiler.start_trace(str(mirror.here))
            self._mirror = mirror

    def after(self, step: int, result: Any) -> None:
        """Ends the trace if `step` is its last step, after the arrays in `result` have been computed."""
        if self._start < self._stop == step + 1:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends the trace if there is one; if the run ends before the last step of it, the steps until now are kept."""
        mirror, self._mirror = self._mirror, None
        if mirror:
            jax.profiler.stop_trace()
            mirror.close()
