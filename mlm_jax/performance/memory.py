"""The memory of a compiled program, as the compiler counts it."""

import dataclasses

import jax

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Memory:
    """What one device holds while a program runs.

    Attributes:
      argument_bytes: of a train step: the state and the batch.
      temporary_bytes: activations and whatever else lives during the step.
      output_bytes: the new state, where it does not take the place of the old one, and the metrics.
      program_bytes: the program itself.
    """

    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    program_bytes: int

    @property
    def total_bytes(self) -> int:
        """The most that lives at once."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.program_bytes


def memory_of(compiled: jax.stages.Compiled) -> Memory | None:
    """The memory of a compiled function; None where the compiler does not say."""
    memory = compiled.memory_analysis()
    return memory and Memory(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
    )


def describe(compiled: jax.stages.Compiled) -> str:
    """Its largest parts, in MiB; '' where the compiler does not say."""
    memory = memory_of(compiled)
    if memory is None:
        return ''
    return (
        f'{memory.argument_bytes / MIB:,.0f} MiB of state and batch, {memory.temporary_bytes / MIB:,.0f} MiB of '
        'temporaries per device'
    )
