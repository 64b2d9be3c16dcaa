"""The memory of a compiled program, as the compiler reports it."""

import dataclasses

import jax

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of one device that a program uses.

    Attributes:
      argument_bytes: the arguments; for a train step, the state and the batch.
      temporary_bytes: arrays that exist only while the program runs, such as activations.
      output_bytes: results that do not reuse the memory of an argument; for a train step, mainly the metrics.
      program_bytes: the program itself.
    """

    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    program_bytes: int

    @property
    def total_bytes(self) -> int:
        """The maximal memory in use at one time."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.program_bytes


def memory_of(compiled: jax.stages.Compiled) -> Memory | None:
    """The memory of a compiled function; None where the compiler does not report it."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return Memory(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
    )


def describe(compiled: jax.stages.Compiled) -> str:
    """The largest parts of the memory, in MiB; '' where the compiler does not report them."""
    memory = memory_of(compiled)
    if memory is None:
        return ''
    return (
        f'{memory.argument_bytes / MIB:,.0f} MiB of state and batch, {memory.temporary_bytes / MIB:,.0f} MiB of '
        'temporaries per device'
    )
