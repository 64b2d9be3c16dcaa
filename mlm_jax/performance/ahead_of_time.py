"""Compiles the train step of a configuration for devices that need not be present, and reports what the step needs."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental.compilation_cache import compilation_cache

from mlm_jax import config as config_lib
from mlm_jax.masking import tables
from mlm_jax.masking.vocabulary import Vocabulary, standard_vocabulary
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.performance import collectives
from mlm_jax.performance.collectives import Totals
from mlm_jax.performance.memory import Memory, memory_of
from mlm_jax.training import build, runtime
from mlm_jax.training.state import abstract_state
from mlm_jax.training.step import jit_train_step

# For TPUs that are not present: the sharding is the same and the memory is the same within 1 %, but compiling takes a
# sixth of the time (BERT-base for a v5e-16: 25 s of one core instead of 167 s).
LOW_EFFORT = {'exec_time_optimization_effort': -1.0}


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What one run of the step needs on one device.

    Attributes:
      memory: the memory that the step occupies.
      flops: FLOPs of the matrix products, without those inside fused attention kernels, which the compiler hides.
      accessed_bytes: bytes read from and written to the memory of the device.
      collectives: name → (times executed, bytes), within a slice (`collectives.describe_collectives`).
      between_slices: name → (times executed, bytes sent), over the data-center network between slices of TPUs.
    """

    memory: Memory
    flops: int
    accessed_bytes: int
    collectives: Totals
    between_slices: Totals = dataclasses.field(default_factory=dict)


class DoesNotFit(Exception):
    """The step needs more memory than the devices have; the message tells the sizes and what to do."""


CURE = 'raise num_microbatches, set model.remat=matmuls (with sharding=fsdp: fsdp_gather=layer), or use more devices'


def examine_train_step(
    config: ml_collections.ConfigDict, devices: list[jax.Device], compiler_options: dict | None = None
) -> Requirements:
    """Compiles the train step for `devices`, as `compile_train_step` does, and reports what it needs on each of them.

    Raises:
      ConfigError: when the devices do not fit the configuration.
      DoesNotFit: when the compiler finds that the step does not fit their memory.
    """
    try:
        return requirements(compile_train_step(config, devices, compiler_options=compiler_options))
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise DoesNotFit(f'{str(error).splitlines()[0]}\n{CURE}') from None


def compile_train_step(
    config: ml_collections.ConfigDict,
    devices: list[jax.Device],
    vocabulary: Vocabulary | None = None,
    compiler_options: dict | None = None,
) -> jax.stages.Compiled:
    """Compiles the train step for `devices` from shapes alone, without allocating arrays.

    Args:
      config: any configuration; it is resolved here.
      devices: devices of this machine, or those that `parallel.topology.tpu_devices` returns.
      vocabulary: the special ids; None means those of the tokenizers that `prepare` trains. They hardly matter here.
      compiler_options: options of XLA, for example `LOW_EFFORT`.

    Raises:
      ConfigError: when the devices do not fit the configuration.
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, when the step does not fit the devices' memory.
    """
    config = config_lib.resolve(config)
    mesh = runtime.make_mesh(config, devices)
    vocabulary = vocabulary or standard_vocabulary(config.vocab_size)
    run = build.make_run(config, vocabulary, config.batch_size, tables.stand_in(vocabulary))
    with jax.set_mesh(mesh):
        state = abstract_state(run.init, mesh, config.sharding)
        shape = (config.batch_size, config.sequence_length)
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=mesh_lib.batch_sharding(mesh))
        step = jit_train_step(run.train_step, state, mesh)
        with contextlib.nullcontext() if set(devices) <= set(jax.devices()) else no_compilation_cache():
            return step.lower(state, tokens).compile(compiler_options)


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Turns the compilation cache off: JAX can write programs for absent devices to it, but cannot read them."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # the cache would otherwise remember that it is in use
    try:
        yield
    finally:
        jax.config.update('jax_enable_compilation_cache', before)
        compilation_cache.reset_cache()


def requirements(compiled: jax.stages.Compiled) -> Requirements:
    """What the compiled step needs on each device.

    Raises:
      ValueError: when the compiler does not report the memory of the step.
    """
    memory = memory_of(compiled)
    if memory is None:
        raise ValueError('the compiler does not report how much memory the step needs')
    return Requirements(
        memory=memory,
        flops=collectives.matmul_flops(compiled),
        accessed_bytes=collectives.accessed_bytes(compiled),
        collectives=collectives.describe_collectives(compiled),
        between_slices=collectives.between_slices(compiled),
    )
