"""The train step of a configuration, compiled for devices that need not be there, and what it asks of them."""

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
from mlm_jax.performance.memory import Memory, memory_of
from mlm_jax.training import build, runtime
from mlm_jax.training.state import abstract_state
from mlm_jax.training.step import jit_train_step

# For TPUs that are not there: the step is divided the same way and takes the same memory to 1 %, but compiling takes a
# sixth of the time (BERT-base for a v5e-16: 25 s of a core, not 167 s).
LOW_EFFORT = {'exec_time_optimization_effort': -1.0}


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What one run of the step asks of one device.

    Attributes:
      memory: that it holds.
      flops: of the matrix products; fused attention does not show its own.
      accessed_bytes: read from and written to the device's memory.
      collectives: name → (times executed, bytes of their results).
    """

    memory: Memory
    flops: int
    accessed_bytes: int
    collectives: dict[str, tuple[int, int]]


class DoesNotFit(Exception):
    """The step needs more memory than the devices have; the message has the sizes, and the cure."""


CURE = 'raise num_microbatches, set model.remat=matmuls, or use more devices'


def examine_train_step(
    config: ml_collections.ConfigDict, devices: list[jax.Device], compiler_options: dict | None = None
) -> Requirements:
    """Compiles the train step for `devices`, as `compile_train_step` does, and tells what it asks of each.

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
    """Compiles the train step for `devices` from shapes alone: nothing is allocated.

    Args:
      config: any configuration; it is resolved here.
      devices: of this machine, or of `parallel.topology.tpu_devices`.
      vocabulary: the special ids; None means those of the tokenizers trained here. They hardly matter.
      compiler_options: of XLA, e.g. `LOW_EFFORT`.

    Raises:
      ConfigError: when the devices do not fit the configuration.
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, when the step does not fit the devices' memory.
    """
    config = config_lib.resolve(config)
    mesh = runtime.make_mesh(config, devices)
    vocabulary = vocabulary or standard_vocabulary(config.vocab_size)
    run = build.make_run(config, vocabulary, 1000.0, tables.stand_in(vocabulary))
    with jax.set_mesh(mesh):
        state = abstract_state(run.init, mesh, config.sharding)
        shape = (config.batch_size, config.sequence_length)
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=mesh_lib.batch_sharding(mesh))
        step = jit_train_step(run.train_step, state, mesh)
        with contextlib.nullcontext() if set(devices) <= set(jax.devices()) else _no_compilation_cache():
            return step.lower(state, tokens).compile(compiler_options)


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Programs for devices that are not here can be written to JAX's cache, but not read from it."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # it remembers whether it is in use
    try:
        yield
    finally:
        jax.config.update('jax_enable_compilation_cache', before)
        compilation_cache.reset_cache()


def requirements(compiled: jax.stages.Compiled) -> Requirements:
    """What the compiled step asks of each device."""
    return Requirements(
        memory=memory_of(compiled),
        flops=collectives.matmul_flops(compiled),
        accessed_bytes=collectives.accessed_bytes(compiled),
        collectives=collectives.describe_collectives(compiled),
    )
