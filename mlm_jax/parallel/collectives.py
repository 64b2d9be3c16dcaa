"""What devices send each other in a compiled program, and what each of them computes: read from the optimised HLO.

XLA's own cost analysis counts the body of a loop once; here, everything inside a loop counts as often as it runs.
"""

import collections
import math
import re
from collections.abc import Iterator

import jax

COLLECTIVES = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
_ITEM_BITS = {'pred': 8, 'bf16': 16}  # others end in their number of bits: f32, s8, u64, …

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$')
_CALLED = re.compile(
    r'(?:calls|to_apply|body|condition|branch_computations|called_computations)=\{?(%[\w.-]+(?:, *%[\w.-]+)*)'
)
_SHAPE = re.compile(r'\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$')


def describe_collectives(compiled: jax.stages.Compiled) -> dict[str, tuple[int, int]]:
    """The collectives of one run of a compiled function.

    Returns:
      Name → (times executed, bytes of their results on one device), for those that occur.
    """
    totals = collections.defaultdict(lambda: [0, 0])
    for times, shape, operation, _ in _executed(compiled.as_text()):
        name = operation.removesuffix('-start')
        if name not in COLLECTIVES:
            continue
        size = _num_bytes(shape)
        if operation.endswith('-start') and name != 'all-reduce':  # the result of a start holds its operand too
            size = max(_item_sizes(shape))
        totals[name][0] += times
        totals[name][1] += times * size
    return {name: tuple(totals[name]) for name in COLLECTIVES if name in totals}


def matmul_flops(compiled: jax.stages.Compiled) -> int:
    """FLOPs of the matrix products of one run on one device; kernels written by hand do not show theirs."""
    text = compiled.as_text()
    shapes = {}
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            shapes[match[1]] = match[2]
    return sum(
        times * 2 * _product_terms(shape, arguments, shapes)
        for times, shape, operation, arguments in _executed(text)
        if operation in ('dot', 'convolution')
    )


def _executed(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Yields how often, result shape, operation and the rest of the line, of all instructions."""
    computations, entry = _computations(text)
    times = collections.Counter({entry: 1})
    for name in _callers_first(computations, entry):
        for line in computations[name]:
            trips = 1
            if ' while(' in line:
                condition = re.search(r'condition=%([\w.-]+)', line)[1]
                trips = _trip_count(line, condition, computations)
            for called in _called(line):
                times[called] += times[name] * trips
    for name, lines in computations.items():
        for line in lines:
            if times[name] and (match := _INSTRUCTION.match(line)):
                yield times[name], match[2], match[3], match[4]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations, entry, current = {}, '', None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line == '}':
            current = None
        elif current is not None:
            current.append(line)
    return computations, entry


def _callers_first(computations: dict[str, list[str]], entry: str) -> list[str]:
    finished, order = set(), []

    def visit(name):
        finished.add(name)
        for line in computations[name]:
            for called in _called(line):
                if called not in finished:
                    visit(called)
        order.append(name)

    visit(entry)
    return order[::-1]


def _called(line: str) -> list[str]:
    return [name.strip(' %') for group in _CALLED.findall(line) for name in group.split(',')]


def _trip_count(line: str, condition: str, computations: dict[str, list[str]]) -> int:
    """The trip count that XLA knows, or else the bound in the condition: our loops count up from 0."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    lines = list(computations[condition])
    for inner in [called for line in lines for called in _called(line)]:
        lines += computations[inner]
    bounds = [int(n) for line in lines for n in re.findall(r'\bs32\[\]\S* constant\((\d+)\)', line)]
    return max(bounds, default=1)


def _product_terms(shape: str, arguments: str, shapes: dict[str, str]) -> int:
    """Products that a dot or a convolution sums up, in all of its outputs."""
    operands = re.findall(r'%([\w.-]+)', arguments.split(')', 1)[0])
    left, right = (_dimensions(shapes[name]) for name in operands[:2])
    output = _dimensions(shape)
    if labels := re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', arguments):
        return _convolution_terms(arguments, *(dict(zip(*p)) for p in zip(labels.groups(), (left, right, output))))
    contracted = re.search(r'lhs_contracting_dims=\{([\d,]+)\}', arguments)[1]
    return math.prod(output) * math.prod(left[int(d)] for d in contracted.split(','))


def _convolution_terms(arguments: str, left: dict, right: dict, output: dict) -> int:
    """TPUs turn products into convolutions whose windows reach into padding: only pairs with real inputs count.

    Args:
      arguments: holds the window.
      left: label (b, f, or the number of a spatial dimension) → size, of the input.
      right: the same for the kernel (i, o).
      output: the same for the output (b, f).
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


def _dimensions(shape: str) -> list[int]:
    return [int(n) for n in _SHAPE.search(shape)[2].split(',') if n]


def _item_sizes(shape: str) -> list[int]:
    bits = [(_ITEM_BITS.get(kind) or int(kind[1:]), dimensions) for kind, dimensions in _SHAPE.findall(shape)]
    return [math.prod(int(n) for n in dimensions.split(',') if n) * size // 8 for size, dimensions in bits]


def _num_bytes(shape: str) -> int:
    return sum(_item_sizes(shape))
