"""Optimized HLO, as XLA prints it: its instructions, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once. Here the body is counted as often as it runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import jax

_ITEM_BITS = {'pred': 8, 'bf16': 16}  # the names of all other types end in their number of bits: f32, s8, u64, …

_MODULE = re.compile(r'HloModule ([^\s,]+)')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$')
_CALLED = re.compile(
    r'(?:calls|to_apply|body|condition|branch_computations|called_computations)=\{?(%[\w.-]+(?:, *%[\w.-]+)*)'
)
_SHAPE = re.compile(r'\b(pred|bf16|[fsu]\d+)\[([\d,]*)\](\{[^}]*\})?')
_INSTRUCTION = re.compile(r'^\s*(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$')
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
      dimensions: its sizes.
      item_bits: bits of one element.
      is_local: whether it is in the memory of the core (on TPUs, memory space 1) and not in that of the device.
    """

    dimensions: tuple[int, ...]
    item_bits: int
    is_local: bool

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.dimensions)

    @property
    def num_bytes(self) -> int:
        """The number of bytes, without the padding of the layout."""
        return self.size * self.item_bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      shape: the shape of the result, as printed.
      operation: 'add', 'fusion', 'custom-call', ….
      rest: the part of the line after the opening parenthesis: operands and attributes.
      is_root: whether the computation returns its result.
    """

    name: str
    shape: str
    operation: str
    rest: str
    is_root: bool = False

    @functools.cached_property
    def op_name(self) -> str:
        """JAX's name of the operation that it was compiled from, a path of modules and functions; '' if unknown."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ''

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of the instructions whose results it reads."""
        return tuple(re.findall(r'%([\w.-]+)', self.rest.split(')', 1)[0]))

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The names of the computations that it calls."""
        return tuple(called_computations(self.rest))

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result: one array, or the arrays of a tuple."""
        return tuple(arrays_of(self.shape))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      name: the name of the module, such as 'jit_train_step'.
      computations: name → instructions.
      entry: the name of the computation at which the program starts.
      times: name of a computation → how often it runs in one run of the program; includes the insides of kernels.
    """

    name: str
    computations: dict[str, list[Instruction]]
    entry: str
    times: collections.Counter[str]

    @functools.cached_property
    def instructions(self) -> dict[str, Instruction]:
        """Name → instruction, over all computations."""
        return {i.name: i for computation in self.computations.values() for i in computation}

    @functools.cached_property
    def kernels(self) -> frozenset[str]:
        """The names of the computations that are part of a single instruction: bodies of fusions, reductions, sorts, ….

        The other computations launch instructions: the entry, loops, branches and calls.
        """
        launching: set[str] = set()
        pending = [self.entry]
        while pending:
            name = pending.pop()
            if name not in launching:
                launching.add(name)
                for instruction in self.computations[name]:
                    if instruction.operation in ('while', 'conditional', 'call', 'async-start'):
                        pending += instruction.called
        return frozenset(self.computations) - launching

    def executed(self) -> Iterator[tuple[int, Instruction]]:
        """Yields (how often it runs, instruction) for all instructions that run, including those inside kernels."""
        for name, instructions in self.computations.items():
            if self.times[name]:
                for instruction in instructions:
                    yield self.times[name], instruction

    def launched(self) -> Iterator[tuple[int, Instruction]]:
        """Yields the same as `executed`, without the instructions inside kernels."""
        for name, instructions in self.computations.items():
            if self.times[name] and name not in self.kernels:
                for instruction in instructions:
                    yield self.times[name], instruction

    def readers(self) -> dict[str, set[str]]:
        """Name of a launched instruction → the instructions that read its result, also through tuples and renamings."""
        read_by: dict[str, set[str]] = {}
        for name, instructions in self.computations.items():
            if name in self.kernels:
                continue
            for instruction in reversed(instructions):  # a reader comes after the instructions whose results it reads
                through = instruction.operation in ('tuple', 'get-tuple-element', 'bitcast')
                found = read_by.get(instruction.name, set()) if through else {instruction.name}
                for operand in instruction.operands:
                    read_by.setdefault(operand, set()).update(found)
        return read_by


def of_compiled(compiled: jax.stages.Compiled) -> Program:
    """The program of a compiled function.

    Raises:
      ValueError: when the backend does not print its programs.
    """
    return parse(text_of(compiled))


def text_of(compiled: jax.stages.Compiled) -> str:
    """The optimized HLO of a compiled function.

    Raises:
      ValueError: when the backend does not print its programs.
    """
    text = compiled.as_text()
    if text is None:
        raise ValueError('this backend of JAX does not print the HLO of its compiled programs')
    return text


def parse(text: str) -> Program:
    """The program that `text_of` returns as text."""
    computations: dict[str, list[Instruction]] = {}
    entry = ''
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line == '}':
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(Instruction(match[2], match[3], match[4], match[5], bool(match[1])))
    module = _MODULE.match(text)
    return Program(module[1] if module else '', computations, entry, _times(computations, entry))


def arrays_of(shape: str) -> list[Array]:
    """The arrays of a printed shape, such as 'f32[2,3]{1,0}' or a tuple of such shapes."""
    return [
        Array(tuple(int(n) for n in sizes.split(',') if n), _ITEM_BITS.get(kind) or int(kind[1:]), 'S(1)' in layout)
        for kind, sizes, layout in _SHAPE.findall(shape)
    ]


def called_computations(text: str) -> list[str]:
    """The names of the computations that an instruction with these attributes calls."""
    return [name.strip(' %') for group in _CALLED.findall(text) for name in group.split(',')]


def _times(computations: dict[str, list[Instruction]], entry: str) -> collections.Counter[str]:
    times = collections.Counter({entry: 1})
    for name in _callers_first(computations, entry):
        for instruction in computations[name]:
            trips = _trip_count(instruction, computations) if instruction.operation == 'while' else 1
            for called in instruction.called:
                times[called] += times[name] * trips
    return times


def _callers_first(computations: dict[str, list[Instruction]], entry: str) -> list[str]:
    finished: set[str] = set()
    order: list[str] = []

    def visit(name: str) -> None:
        finished.add(name)
        for instruction in computations[name]:
            for called in instruction.called:
                if called not in finished:
                    visit(called)
        order.append(name)

    visit(entry)
    return order[::-1]


def _trip_count(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """The trip count that XLA reports; without it, the bound in the condition, because loops of JAX count up from 0."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r'condition=%([\w.-]+)', loop.rest)
    if condition is None:
        raise ValueError(f'the loop {loop.name} of the HLO has no condition')
    instructions = list(computations[condition[1]])
    for inner in [called for i in instructions for called in i.called]:
        instructions += computations[inner]
    bounds = [
        int(i.rest.split(')', 1)[0])
        for i in instructions
        if i.operation == 'constant' and i.shape.startswith('s32[]') and i.rest[:1].isdigit()
    ]
    return max(bounds, default=1)
