"""The kind of work that each instruction of a compiled step does, by the part of the model that it computes.

The optimized HLO names for each instruction the operation of the model that it comes from (`op_name`, a path of Linen
modules, named scopes and JAX functions). An instruction is often a fusion of several operations. Its kind is then the
kind for which the most elements are computed in the fusion.
"""

import collections
import re
from collections.abc import Mapping

from mlm_jax.performance import hlo
from mlm_jax.performance.collectives import COLLECTIVES

# Kinds of work, as tables name them.
MATMUL, ATTENTION, SOFTMAX, NORM = 'matmul', 'attention', 'softmax', 'norm'
ACTIVATION, DROPOUT, RANDOM_BITS = 'activation', 'dropout, residual', 'random bits'
EMBEDDING, HEAD, OPTIMIZER, MASKING = 'embedding', 'head and loss', 'optimizer', 'masking'
COPIES, COLLECTIVE, OTHER, IDLE = 'copies, transposes', 'collectives', 'other', 'idle'
KINDS = (
    MATMUL, ATTENTION, SOFTMAX, NORM, ACTIVATION, DROPOUT, RANDOM_BITS, EMBEDDING, HEAD, OPTIMIZER, MASKING, COPIES,
    COLLECTIVE, OTHER, IDLE,
)  # fmt: skip

_PRODUCTS = ('dot', 'convolution')
_PROJECTIONS = {'qkv', 'query', 'key_value', 'out'}  # the linear layers of attention
# Operations that move or rename elements and compute nothing.
_MOVES = (
    'parameter', 'constant', 'iota', 'bitcast', 'bitcast-convert', 'broadcast', 'concatenate', 'convert', 'copy',
    'copy-start', 'copy-done', 'dynamic-slice', 'dynamic-update-slice', 'get-tuple-element', 'pad', 'reshape',
    'reverse', 'slice', 'transpose', 'tuple', 'async-start', 'async-done', 'async-update',
)  # fmt: skip
# Operations whose work is measured by the size of their input.
_REDUCTIONS = ('reduce', 'reduce-window', 'sort')
_RANDOM = re.compile(r'threefry|random_bits|rng_bit_generator|_bernoulli|_uniform|_randint|_gumbel|random_wrap|\brng')
_SOFTMAX_OPERATIONS = {'exp', 'exp2', 'log', 'sub', 'neg', 'div', 'reduce_max', 'reduce_sum', 'max', 'stop_gradient'}
_COLLECTIVE_KERNEL = re.compile(r'nccl|' + '|'.join(COLLECTIVES))
_PRODUCT_KERNEL = re.compile(r'gemm|cublas|cutlass|matmul|xmma|nvjet')
_FLASH_KERNEL = re.compile(r'fmha|flash|splash|sdpa|mha_')


def classify(program: hlo.Program) -> dict[str, str]:
    """Name of a launched instruction → its kind; also by the names of GPU kernels, which have '_' in place of '.'."""
    kinds: dict[str, str] = {}
    for name, instructions in program.computations.items():
        if name not in program.kernels:
            own = {instruction.name: _kind(instruction, program) for instruction in instructions}
            if _draws(instructions, own, program):
                own = {name: RANDOM_BITS if kind == COPIES else kind for name, kind in own.items()}
            kinds |= own
    kinds |= _kinds_of_unnamed(kinds, program)
    return {re.sub(r'[.-]', '_', name): kind for name, kind in kinds.items()} | kinds


def _kinds_of_unnamed(kinds: Mapping[str, str], program: hlo.Program) -> dict[str, str]:
    """The kinds of instructions without an `op_name`, such as the first half of a long sum: the kind of a reader."""
    read_by = program.readers()
    found: dict[str, str] = {}
    for name, kind in kinds.items():
        if kind == OTHER and not op_name_of(name, program):
            known = [
                kinds[reader] for reader in sorted(read_by.get(name, ())) if kinds.get(reader) not in (None, OTHER)
            ]
            found[name] = known[0] if known else OTHER
    return found


def kind_of_kernel(name: str) -> str:
    """The kind of a kernel of which only the name is known, such as a kernel of cuBLAS."""
    name = name.lower()
    for pattern, kind in ((_COLLECTIVE_KERNEL, COLLECTIVE), (_FLASH_KERNEL, ATTENTION), (_PRODUCT_KERNEL, MATMUL)):
        if pattern.search(name):
            return kind
    return COPIES if 'memcpy' in name or 'memset' in name else OTHER


def _kind(instruction: hlo.Instruction, program: hlo.Program) -> str:
    operation = re.sub(r'-(start|done)$', '', instruction.operation)
    if operation in COLLECTIVES:
        return COLLECTIVE
    if operation == 'custom-call' and _COLLECTIVE_KERNEL.search(instruction.rest):
        return COLLECTIVE
    inside = _inside(instruction, program)
    if products := [i for i in inside if i.operation in _PRODUCTS or _is_product_call(i)]:
        return kind_of_path(max(products, key=lambda i: _size(i, program)).op_name or instruction.op_name, True)
    work: collections.Counter[str] = collections.Counter()
    for part in inside:
        if part.operation not in _MOVES:
            work[kind_of_path(part.op_name or instruction.op_name, False)] += _size(part, program)
    # If very little is computed, such as the start of a slice, the purpose of the instruction is to move its result.
    return work.most_common(1)[0][0] if work and work.total() >= _written(inside, program) else COPIES


def _draws(instructions: list[hlo.Instruction], kinds: Mapping[str, str], program: hlo.Program) -> bool:
    """Whether a computation is a loop that only draws random bits; its copies then count as drawing, too."""
    work: collections.Counter[str] = collections.Counter()
    for instruction in instructions:
        work[kinds[instruction.name]] += _size(instruction, program)
    return work[RANDOM_BITS] > 0.9 * (work.total() - work[COPIES])


def _inside(instruction: hlo.Instruction, program: hlo.Program) -> list[hlo.Instruction]:
    """The instructions inside a fusion or a called kernel, at any depth; of other instructions, the instruction.

    Reducers and comparators, which work on scalars, are left out.
    """
    if instruction.operation not in ('fusion', 'custom-call') or not instruction.called:
        return [instruction]
    return [
        inner for name in instruction.called for part in program.computations[name] for inner in _inside(part, program)
    ]


def _is_product_call(instruction: hlo.Instruction) -> bool:
    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    return bool(target and re.search(r'gemm|matmul|cublas|cudnn\$(conv|fmha)|splash|mosaic|tpu_custom', target[1]))


def _written(inside: list[hlo.Instruction], program: hlo.Program) -> int:
    """The number of elements of the result; for arrays that are updated in place, of the update."""
    updates = [program.instructions[i.operands[1]] for i in inside if i.operation == 'dynamic-update-slice']
    return sum(_size(i, program) for i in updates) if updates else _size(inside[-1], program)


def _size(instruction: hlo.Instruction, program: hlo.Program) -> int:
    """The number of elements that an instruction computes or reduces."""
    arrays = list(instruction.arrays)
    if instruction.operation in _REDUCTIONS and instruction.operands:
        arrays += program.instructions[instruction.operands[0]].arrays
    return max((array.size for array in arrays), default=0)


def kind_of_path(op_name: str, is_product: bool) -> str:
    """The kind of an operation by its `op_name`.

    Args:
      op_name: e.g. 'jit(train_step)/jvp(MLM)/MLM.logits/encoder/while/body/closed_call/layers/mlp/up/dot_general'.
      is_product: whether it is a matrix product, or a fused kernel with matrix products.
    """
    parts = op_name.split('/')
    modules, operation = set(parts[:-1]), parts[-1]
    if is_product:
        if 'attention' in modules and not modules & _PROJECTIONS:
            return ATTENTION
        return MATMUL if _in_model(op_name) and _in_layers(modules) else _outside_layers(op_name, modules)
    if 'masking' in modules:
        return MASKING
    if _RANDOM.search(op_name):
        return RANDOM_BITS
    if not _in_model(op_name):
        return OPTIMIZER if 'optimizer' in modules else OTHER
    if any(part.endswith('norm') for part in modules) and not modules & {'head'}:
        return NORM
    if any(part.startswith('Dropout') for part in modules):
        return DROPOUT
    if not _in_layers(modules):
        return _outside_layers(op_name, modules)
    if 'attention' in modules:
        if modules & _PROJECTIONS:
            return MATMUL  # the bias of a projection
        return SOFTMAX if operation in _SOFTMAX_OPERATIONS or 'softmax' in op_name else ATTENTION
    if 'mlp' in modules:
        return MATMUL if modules & {'up', 'down', 'gate_and_up'} else ACTIVATION
    return DROPOUT  # the rest of a layer: residual connections


def _in_model(op_name: str) -> bool:
    return 'jvp(' in op_name or 'layers/' in op_name


def _in_layers(modules: set[str]) -> bool:
    return any(part.endswith(('layers', 'last_layer')) for part in modules)


def _outside_layers(op_name: str, modules: set[str]) -> str:
    if not _in_model(op_name):
        return OPTIMIZER if 'optimizer' in modules else OTHER
    embeds = any(part.endswith(('embed', 'embedding', 'token_vectors', 'relative_bias')) for part in modules)
    if embeds or 'head' in modules or not modules & {'encoder', 'decoder'}:
        return EMBEDDING if embeds and 'head' not in modules else HEAD
    # In a loop over layers, the rest are sums over the layers, such as sums of gradients.
    return DROPOUT if 'while' in modules else EMBEDDING


def op_name_of(name: str, program: hlo.Program) -> str:
    """The `op_name` of an instruction, or else of the last instruction inside it that has one; '' if none has."""
    if name not in program.instructions:
        return ''
    instruction = program.instructions[name]
    if instruction.op_name:
        return instruction.op_name
    return next((i.op_name for i in reversed(_inside(instruction, program)) if i.op_name), '')
