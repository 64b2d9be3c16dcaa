"""What the devices of a compiled program send to each other, and what each of them computes, from the optimized HLO."""

import math
import re
from collections.abc import Mapping, Sequence

import jax

from mlm_jax.performance import hlo

COLLECTIVES = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
# Instructions that move no data themselves: they rename existing arrays, or the computations that they call move data.
_FREE = (
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all',
    'optimization-barrier', 'partition-id', 'replica-id',
)  # fmt: skip
_ALLOCATES = 'custom_call_target="AllocateBuffer"'
_CUBLAS = 'custom_call_target="__cublas$'  # also on AMD GPUs; XLA gives most products there to libraries
# The TPU compiler writes a reduce-scatter as the fusion of an all-reduce with the slice that a device keeps of it.
_SCATTERING = 'all-reduce-scatter'
_CHANNEL = re.compile(r'channel_id=(\d+)')
# What leaves a slice of TPUs goes through the host, and the runtime of several slices does what this attribute says.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')

NETWORK_TITLE = 'over the data-center network between slices, per device'  # of a `table`

Totals = dict[str, tuple[int, int]]


def describe_collectives(compiled: jax.stages.Compiled) -> Totals:
    """The collectives in one run of a compiled function, except between slices of TPUs.

    Returns:
      Name → (times executed, bytes of the results on one device), for the collectives that occur. Of a reduce-scatter,
      whose result is a part of what it sends, the bytes are those of its operands.
    """
    program, totals = hlo.of_compiled(compiled), Totals()
    scattering = {i.name for name, body in program.computations.items() if name.startswith(_SCATTERING) for i in body}
    in_kernels = {i.name for name in program.kernels for i in program.computations[name]}
    seen: set[str] = set()
    for times, instruction in program.executed():
        name = instruction.operation.removesuffix('-start')
        if name not in COLLECTIVES:
            continue
        channel = _CHANNEL.search(instruction.rest)
        if channel and instruction.name in in_kernels:  # start, body and end of one, each in a fusion of its own
            if channel[1] in seen:
                continue
            seen.add(channel[1])
        _add(
            totals,
            'reduce-scatter' if instruction.name in scattering else name,
            times,
            _num_bytes(program, instruction),
        )
    return {name: totals[name] for name in COLLECTIVES if name in totals}


def _num_bytes(program: hlo.Program, instruction: hlo.Instruction) -> int:
    """The bytes that `describe_collectives` counts for an instruction."""
    name = instruction.operation.removesuffix('-start')
    results = [array.num_bytes for array in instruction.arrays]

    def operands() -> int:
        return sum(a.num_bytes for operand in instruction.operands for a in program.instructions[operand].arrays)

    if name == 'reduce-scatter':
        return operands()
    # The result of an asynchronous start contains its operands as well, except for an all-reduce.
    if name == 'all-reduce' or not instruction.operation.endswith('-start'):
        return sum(results)
    return sum(results) - operands() if name == 'all-gather' else max(results)


def between_slices(compiled: jax.stages.Compiled) -> Totals:
    """The collectives over the data-center network in one run of a function that was compiled for several TPU slices.

    Returns:
      Name → (times executed, bytes that one device sends); empty for other functions.
    """
    totals = Totals()
    for times, instruction in hlo.of_compiled(compiled).executed():
        if instruction.operation == 'send' and (found := _BETWEEN_SLICES.search(instruction.rest)):
            _add(totals, found[1].lower().replace('_', '-'), times, instruction.arrays[0].num_bytes)
    return totals


def _add(totals: Totals, name: str, times: int, num_bytes: int) -> None:
    count, before = totals.get(name, (0, 0))
    totals[name] = count + times, before + times * num_bytes


def matmul_flops(compiled: jax.stages.Compiled) -> int:
    """FLOPs of the matrix products in one run on one device, with cuBLAS's and without those inside other kernels."""
    program = hlo.of_compiled(compiled)
    return sum(
        times * 2 * _product_terms(instruction, program)
        for times, instruction in program.executed()
        if instruction.operation in ('dot', 'convolution') or _CUBLAS in instruction.rest
    )


def accessed_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that the instructions of one run read from and write to the memory of one device.

    The operands and the results of each launched instruction (a fusion is one instruction) are counted each time that
    it runs. Of an operand that the instruction slices or gathers from, only the slices are counted; of an operand that
    it updates in place, only the update. Arrays that XLA keeps in the memory of the core are not counted. Caches are
    ignored: each access is counted even if the data are in a cache.
    """
    program = hlo.of_compiled(compiled)
    return sum(times * _bytes_of(instruction, program) for times, instruction in program.launched())


def _bytes_of(instruction: hlo.Instruction, program: hlo.Program) -> int:
    if instruction.operation in _FREE or instruction.operation.endswith('-done') or _ALLOCATES in instruction.rest:
        return 0
    if instruction.operation == 'fusion':
        read = sum(
            _read_in(instruction, place, _main_memory(program.instructions[name].arrays), program)
            for place, name in enumerate(instruction.operands)
        )
        body = program.computations[instruction.called[0]]
        return read + _written(instruction, next(i for i in body if i.is_root), program)
    if instruction.operation in ('dynamic-slice', 'gather', 'slice'):
        return 2 * _main_memory(instruction.arrays)
    if instruction.operation == 'dynamic-update-slice':
        return 2 * _main_memory(program.instructions[instruction.operands[1]].arrays)
    # The result of an asynchronous start contains its operand, which is counted once.
    written = instruction.arrays[:1] if instruction.operation.endswith('-start') else instruction.arrays
    if _CUBLAS in instruction.rest and len(written) > 1:
        written = written[:-1]  # the last one is room to work in
    read = sum(_main_memory(program.instructions[name].arrays) for name in instruction.operands)
    return read + _main_memory(written)


def _read_in(fusion: hlo.Instruction, place: int, whole: int, program: hlo.Program) -> int:
    """Bytes that the body of a fusion, with the fusions inside it, reads of an operand of `whole` bytes."""
    body = program.computations[fusion.called[0]]
    parameter = next(i for i in body if i.operation == 'parameter' and int(i.rest.split(')', 1)[0]) == place)
    read, pending = 0, [parameter.name] if whole else []
    while pending:
        name = pending.pop()
        for user in (i for i in body if name in i.operands):
            if user.operation in ('dynamic-slice', 'gather', 'slice') and user.operands[0] == name:
                read += sum(array.num_bytes for array in user.arrays)
            elif _is_view(user, program) and not user.is_root:
                pending.append(user.name)
            elif user.operation == 'fusion':
                places = (inner for inner, operand in enumerate(user.operands) if operand == name)
                read += sum(_read_in(user, inner, whole, program) for inner in places)
            elif user.operation != 'dynamic-update-slice' or user.operands[0] != name:
                return whole
    return min(read, whole)


def _is_view(instruction: hlo.Instruction, program: hlo.Program) -> bool:
    """Whether an instruction in the body of a fusion returns its operand in another shape or layout."""
    if instruction.operation == 'fusion':
        body = program.computations[instruction.called[0]]
        return all(i.operation == 'parameter' or _is_view(i, program) for i in body)
    return instruction.operation in ('bitcast', 'copy')


def _written(fusion: hlo.Instruction, root: hlo.Instruction, program: hlo.Program) -> int:
    """Bytes that the body of a fusion writes of its results."""
    roots = [program.instructions[name] for name in root.operands] if root.operation == 'tuple' else [root]
    if len(roots) < len(fusion.arrays):  # one instruction with several results
        return _main_memory(fusion.arrays)
    total = 0
    for array, source in zip(fusion.arrays, roots, strict=True):
        while source.operation in ('bitcast', 'fusion'):
            if source.operation == 'bitcast':
                source = program.instructions[source.operands[0]]
            else:
                source = next(i for i in program.computations[source.called[0]] if i.is_root)
        if source.operation == 'dynamic-update-slice' and not array.is_local:
            total += sum(array.num_bytes for array in program.instructions[source.operands[1]].arrays)
        else:
            total += _main_memory((array,))
    return total


def _main_memory(arrays: tuple[hlo.Array, ...]) -> int:
    return sum(array.num_bytes for array in arrays if not array.is_local)


def _product_terms(instruction: hlo.Instruction, program: hlo.Program) -> int:
    """The products of two numbers that a dot, a convolution or a call of cuBLAS adds up, over all of its outputs."""
    arguments = instruction.rest
    left, right = (program.instructions[name].arrays[0].dimensions for name in instruction.operands[:2])
    output = instruction.arrays[0].dimensions
    if labels := re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', arguments):
        sizes = [dict(zip(names, shape)) for names, shape in zip(labels.groups(), (left, right, output))]
        return _convolution_terms(arguments, *sizes)
    # A dot names the contracted dimensions as an attribute, {1}, and a call of cuBLAS in JSON, ["1"]. An outer product
    # contracts no dimension, and XLA leaves the attribute of the dot out.
    contracted = re.search(r'lhs_contracting_dim(?:s|ensions)"?[=:][{[]([\d,"]*)[]}]', arguments)
    dimensions = re.findall(r'\d+', contracted[1]) if contracted else []
    return math.prod(output) * math.prod(left[int(d)] for d in dimensions)


def _convolution_terms(arguments: str, left: dict, right: dict, output: dict) -> int:
    """The products of a convolution, without those with padding.

    The TPU compiler turns matrix products into convolutions whose windows extend into padding.

    Args:
      arguments: the attributes of the instruction, with the window.
      left: label (b, f, or the number of a spatial dimension) → size, for the input.
      right: the same for the kernel, with the labels i and o.
      output: the same for the output, with the labels b and f.
    """
    terms = output['b'] * output['f'] * right['i']
    for number, size in right.items():
        if number in 'io':
            continue
        where = int(number)
        keys = ('stride', 'lhs_dilate', 'rhs_dilate')
        stride, into, dilation = (int(_window(arguments, key, where, '1')) for key in keys)
        before = int(_window(arguments, 'pad', where, '0_0').split('_')[0])
        reach = range(0, (left[number] - 1) * into + 1, into)
        terms *= sum(o * stride + k * dilation - before in reach for o in range(output[number]) for k in range(size))
    return terms


def _window(arguments: str, key: str, where: int, default: str) -> str:
    found = re.search(rf'window=\{{[^}}]*\b{key}=([\dx_-]+)', arguments)
    return found[1].split('x')[where] if found else default


def table(found: Mapping[str, Sequence[int]]) -> list[str]:
    """An aligned line for each collective of `describe_collectives` or `between_slices`."""
    return [f'{name:<19}{times:>7,} times, {size / 2**20:>10,.1f} MiB in all' for name, (times, size) in found.items()]
