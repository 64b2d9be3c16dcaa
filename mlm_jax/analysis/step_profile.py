"""Where the time of a compiled step goes, by kind of work: a trace of `jax.profiler`, read beside the compiled program.

A trace says when which instruction of the program ran, and for how long; the optimised HLO says of each instruction
which operations of the model it holds (`op_name`, a path of Linen modules, named scopes and JAX functions). An
instruction often holds several, fused: all of its time goes to the kind with the most work in it, by elements computed.

What is known of traces. XLA:CPU writes two events for each launched instruction, in the threads where they happen: one
while the thread that launched it is busy with it, and another, 'end: NAME', when all threads have finished it. A thread
works on what it has an event open for, innermost; threads without one share what is handed out and not yet finished.
Each moment is divided by the threads at work, so that times add up to the wall clock. On GPUs, a device has a thread of
events for each stream, with the instruction in `hlo_op`; on TPUs, a thread 'XLA Ops'. What nothing covers is idle.
Kernels of libraries that a GPU launches from a CUDA graph may be known by their own names only: profile without graphs,
XLA_FLAGS=--xla_gpu_enable_command_buffer=, to tell whose products they are.
"""

import bisect
import collections
import dataclasses
import gzip
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import jax

from mlm_jax.analysis.speed import TrainStep
from mlm_jax.parallel import hlo
from mlm_jax.parallel.collectives import COLLECTIVES

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
# Operations that move or rename elements, and compute nothing.
_MOVES = (
    'parameter', 'constant', 'iota', 'bitcast', 'bitcast-convert', 'broadcast', 'concatenate', 'convert', 'copy',
    'copy-start', 'copy-done', 'dynamic-slice', 'dynamic-update-slice', 'get-tuple-element', 'pad', 'reshape',
    'reverse', 'slice', 'transpose', 'tuple', 'async-start', 'async-done', 'async-update',
)  # fmt: skip
# Operations whose work is in their input.
_REDUCTIONS = ('reduce', 'reduce-window', 'sort')
_RANDOM = re.compile(r'threefry|random_bits|rng_bit_generator|_bernoulli|_uniform|_randint|_gumbel|random_wrap|\brng')
_SOFTMAX_OPERATIONS = {'exp', 'exp2', 'log', 'sub', 'neg', 'div', 'reduce_max', 'reduce_sum', 'max', 'stop_gradient'}
_COLLECTIVE_KERNEL = re.compile(r'nccl|' + '|'.join(COLLECTIVES))
_PRODUCT_KERNEL = re.compile(r'gemm|cublas|cutlass|matmul|xmma|nvjet')
_CONTROL_FLOW = re.compile(r'(while|conditional|call)\b')
_END = 'end: '  # how XLA:CPU names the event at which an instruction is finished
_STREAM = 'Stream'  # how the threads of GPUs are named; where they are, other threads repeat them
_FLASH_KERNEL = re.compile(r'fmha|flash|splash|sdpa|mha_')


@dataclasses.dataclass(frozen=True)
class Event:
    """One run of one instruction; times in microseconds.

    Attributes:
      instruction: its name in the HLO, or that of a kernel where the trace knows no better.
      start: when it was launched.
      end: when the thread or stream that launched it went on.
      finish: when it was finished, at `end` or later.
      lane: that thread or stream.
    """

    instruction: str
    start: float
    end: float
    finish: float
    lane: tuple = ()


@dataclasses.dataclass(frozen=True)
class Device:
    """What ran on one device.

    Attributes:
      events: of the program.
      num_workers: lanes that can work at the same time.
    """

    events: list[Event]
    num_workers: int


@dataclasses.dataclass(frozen=True)
class StepProfile:
    """Where the time of one step went, on average over the traced steps and over devices.

    Attributes:
      seconds: kind → seconds of one step; their sum is the time of a step.
      instructions: (seconds of one step, kind, name, op_name) of the instructions that took longest, longest first.
    """

    seconds: dict[str, float]
    instructions: list[tuple[float, str, str, str]]

    @property
    def step_seconds(self) -> float:
        """The time of one step."""
        return sum(self.seconds.values())


def trace_step(contestant: TrainStep, directory: str | pathlib.Path, num_steps: int = 3) -> StepProfile:
    """Traces some steps and says where their time went.

    Args:
      contestant: compiled.
      directory: receives the trace, for TensorBoard or Perfetto, and beside it the compiled text.
      num_steps: traced.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = contestant.step.as_text()
    (directory / 'step.hlo.txt').write_text(text, encoding='utf-8')
    contestant.run(1)  # what ran before may have left memory that a first step must ask for again
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(directory, profiler_options=options)
    try:
        contestant.run(num_steps)
    finally:
        jax.profiler.stop_trace()
    return read_profile(directory, text, num_steps)


def read_profile(directory: str | pathlib.Path, text: str, num_steps: int, top: int = 12) -> StepProfile:
    """The profile of a program from the newest trace in a directory.

    Args:
      directory: where `jax.profiler.trace` wrote.
      text: the optimised HLO, `compiled.as_text()`.
      num_steps: runs of the program in the trace.
      top: how many instructions to list.

    Raises:
      FileNotFoundError: without a trace.
      ValueError: for a trace in which the program does not occur.
    """
    return profile(load_trace(directory), hlo.parse(text), num_steps, top)


def load_trace(directory: str | pathlib.Path) -> list[dict]:
    """The events of the newest `*.trace.json.gz` under a directory."""
    found = sorted(pathlib.Path(directory).rglob('*.trace.json.gz'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'{directory} holds no *.trace.json.gz, as jax.profiler.trace writes it')
    with gzip.open(found[-1], 'rt', encoding='utf-8') as file:
        return json.load(file)['traceEvents']


def profile(trace: Sequence[Mapping], program: hlo.Program, num_steps: int, top: int = 12) -> StepProfile:
    """The profile of a program from the events of a trace; as `read_profile`."""
    devices = device_events(trace, program)
    if not devices:
        raise ValueError(f'the trace holds no instruction of {program.name}')
    kinds = classify(program)
    seconds, instructions = dict.fromkeys(KINDS, 0.0), collections.Counter()
    for device in devices:
        for name, microseconds in wall_time(device).items():
            share = microseconds / 1e6 / num_steps / len(devices)
            seconds[IDLE if name is None else kinds.get(name) or kind_of_kernel(name)] += share
            if name is not None:
                instructions[name] += share
    longest = [
        (time, kinds.get(name) or kind_of_kernel(name), name, _op_name(name, program))
        for name, time in instructions.most_common(top)
    ]
    return StepProfile({kind: time for kind, time in seconds.items() if time}, longest)


def device_events(trace: Sequence[Mapping], program: hlo.Program) -> list[Device]:
    """What ran of the program, by device; all CPU devices of a process are one."""
    processes = {e['pid']: e['args']['name'] for e in trace if e.get('name') == 'process_name'}
    threads = {(e['pid'], e['tid']): e['args']['name'] for e in trace if e.get('name') == 'thread_name'}
    accelerators = {pid for pid, name in processes.items() if name.startswith('/device:')}
    with_streams = {pid for (pid, _), name in threads.items() if name.startswith(_STREAM)}
    found, on_cpu = collections.defaultdict(list), []
    for event in trace:
        if event.get('ph') != 'X':
            continue
        pid, thread, arguments = event['pid'], threads.get((event['pid'], event['tid']), ''), event.get('args', {})
        if arguments.get('hlo_module', program.name).split('(')[0] != program.name:
            continue
        if pid in accelerators and (thread.startswith(_STREAM) if pid in with_streams else thread == 'XLA Ops'):
            end = event['ts'] + event.get('dur', 0)
            name = arguments.get('hlo_op') or event['name']
            found[pid].append(Event(name, event['ts'], end, end, (pid, event['tid'])))
        elif pid not in accelerators and ('hlo_op' in arguments or event['name'].startswith(_END)):
            on_cpu.append(event)
    if found:
        return [Device(events, 1) for events in found.values()]
    workers = sum('XLAEigen' in name for name in threads.values())
    return [Device(events, max(1, workers))] if (events := _cpu_events(on_cpu, program)) else []


def _cpu_events(trace: list[Mapping], program: hlo.Program) -> list[Event]:
    """Pairs the events of XLA:CPU: an end belongs to the newest launch of its instruction that has none yet.

    Ends are noticed late: an instruction has finished when one that reads its result begins, or when it runs again.
    """
    unfinished, finish, launches = collections.defaultdict(list), {}, collections.defaultdict(list)
    for event in sorted(trace, key=lambda event: event['ts']):
        if not event['name'].startswith(_END):
            unfinished[event['args']['hlo_op']].append(event)
            launches[event['args']['hlo_op']].append(event['ts'])
        elif started := unfinished[event['name'].removeprefix(_END)]:
            finish[id(started.pop())] = event['ts']
    readers = _readers(program)
    events = []
    for event in (event for event in trace if not event['name'].startswith(_END)):
        name, end = event['args']['hlo_op'], event['ts'] + event.get('dur', 0)
        bounds = [finish.get(id(event), end)]
        for other in {name} | readers.get(name, set()):
            later = launches[other][bisect.bisect_right(launches[other], event['ts']) :]
            bounds += later[:1]
        events.append(Event(name, event['ts'], end, max(end, min(bounds)), (event['tid'],)))
    return events


def _readers(program: hlo.Program) -> dict[str, set[str]]:
    """Name of a launched instruction → names of those that read its result, out of tuples and by other names too."""
    readers = {}
    for name, instructions in program.computations.items():
        if name in program.kernels:
            continue
        for instruction in reversed(instructions):  # a reader stands behind what it reads
            through = instruction.operation in ('tuple', 'get-tuple-element', 'bitcast')
            found = readers.get(instruction.name, set()) if through else {instruction.name}
            for operand in instruction.operands:
                readers.setdefault(operand, set()).update(found)
    return readers


def wall_time(device: Device) -> dict[str | None, float]:
    """Instruction → its part, in microseconds, of the time from the first event to the last; None: nothing ran."""
    changes = []  # (time, order, event): what is over goes before what begins; outer events before inner ones
    for event in device.events:
        changes.append((event.start, 1, -event.end, event))
        changes.append((event.end, 0, 0.0, event))
    total: dict[str | None, float] = collections.defaultdict(float)
    lanes: dict[tuple, list[Event]] = collections.defaultdict(list)  # what is open, innermost last
    handed_out: list[Event] = []
    changes += [(event.finish, 0, 1.0, None) for event in device.events if event.finish > event.end]
    changes.sort(key=lambda change: change[:3])
    now = changes[0][0]
    for time, begins, _, event in changes:
        if time > now:
            for name, part in _at_work(lanes, handed_out, device.num_workers):
                total[name] += part * (time - now)
            now = time
        if begins:
            lanes[event.lane].append(event)
        elif event:
            if event in lanes[event.lane]:
                lanes[event.lane].remove(event)
            if event.finish > event.end and not _CONTROL_FLOW.match(event.instruction):
                handed_out.append(event)
        else:
            handed_out = [other for other in handed_out if other.finish > now]
    return dict(total)


def _at_work(lanes: Mapping[tuple, list[Event]], handed_out: list[Event], num_workers: int):
    """(instruction, share of the moment) pairs."""
    busy = [lane[-1].instruction for lane in lanes.values() if lane]
    free = num_workers - len(busy) if busy else 1
    parts = [(name, 1.0) for name in busy]
    if handed_out and free > 0:
        parts += [(event.instruction, free / len(handed_out)) for event in handed_out]
    whole = sum(part for _, part in parts)
    return [(name, part / whole) for name, part in parts] if parts else [(None, 1.0)]


# ---- Kinds ---------------------------------------------------------------------------------------------------


def classify(program: hlo.Program) -> dict[str, str]:
    """Name of a launched instruction → its kind; also under the names that GPU kernels have, '_' in place of '.'."""
    kinds = {}
    for name, instructions in program.computations.items():
        if name not in program.kernels:
            own = {instruction.name: _kind(instruction, program) for instruction in instructions}
            if _draws(instructions, own, program):
                own = {name: RANDOM_BITS if kind == COPIES else kind for name, kind in own.items()}
            kinds |= own
    kinds |= _kinds_of_unnamed(kinds, program)
    return {re.sub(r'[.-]', '_', name): kind for name, kind in kinds.items()} | kinds


def _kinds_of_unnamed(kinds: Mapping[str, str], program: hlo.Program) -> dict[str, str]:
    """Kinds of what XLA has put in without saying why, such as the first half of a long sum: those of their readers."""
    readers, found = _readers(program), {}
    for name, kind in kinds.items():
        if kind == OTHER and not _op_name(name, program):
            known = [
                kinds[reader] for reader in sorted(readers.get(name, ())) if kinds.get(reader) not in (None, OTHER)
            ]
            found[name] = known[0] if known else OTHER
    return found


def kind_of_kernel(name: str) -> str:
    """The kind of a kernel of which only the name is known, such as those of cuBLAS."""
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
    work = collections.Counter()
    for part in inside:
        if part.operation not in _MOVES:
            work[kind_of_path(part.op_name or instruction.op_name, False)] += _size(part, program)
    # Where next to nothing is computed, such as the place of a slice, the instruction is there to move its result.
    return work.most_common(1)[0][0] if work and work.total() >= _written(inside, program) else COPIES


def _draws(instructions: list[hlo.Instruction], kinds: Mapping[str, str], program: hlo.Program) -> bool:
    """Whether this is a loop that draws random bits and nothing else: then what it copies belongs to that."""
    work = collections.Counter()
    for instruction in instructions:
        work[kinds[instruction.name]] += _size(instruction, program)
    return work[RANDOM_BITS] > 0.9 * (work.total() - work[COPIES])


def _inside(instruction: hlo.Instruction, program: hlo.Program) -> list[hlo.Instruction]:
    """The instructions of a fusion or a called kernel, however deep; the instruction itself where it has none.

    Reducers and comparators, which work on scalars, are not among them.
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
    """Elements of the result; of arrays that are updated in place, those of the update."""
    updates = [program.instructions[i.operands[1]] for i in inside if i.operation == 'dynamic-update-slice']
    return sum(_size(i, program) for i in updates) if updates else _size(inside[-1], program)


def _size(instruction: hlo.Instruction, program: hlo.Program) -> int:
    """Elements that an instruction computes, or reduces."""
    arrays = list(instruction.arrays)
    if instruction.operation in _REDUCTIONS and instruction.operands:
        arrays += program.instructions[instruction.operands[0]].arrays
    return max((array.size for array in arrays), default=0)


def kind_of_path(op_name: str, is_product: bool) -> str:
    """The kind of an operation by its `op_name`.

    Args:
      op_name: e.g. 'jit(train_step)/jvp(MLM)/MLM.logits/encoder/while/body/closed_call/layers/mlp/up/dot_general'.
      is_product: whether it is a matrix product, or a fused kernel of such.
    """
    parts = op_name.split('/')
    modules, operation = set(parts[:-1]), parts[-1]
    if is_product:
        if 'attention' in modules and not modules & {'qkv', 'out'}:
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
        if modules & {'qkv', 'out'}:
            return MATMUL  # their biases
        return SOFTMAX if operation in _SOFTMAX_OPERATIONS or 'softmax' in op_name else ATTENTION
    if 'mlp' in modules:
        return MATMUL if modules & {'up', 'down', 'gate_and_up'} else ACTIVATION
    return DROPOUT  # what is left of a layer: residual connections


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
    return DROPOUT if 'while' in modules else EMBEDDING  # sums over the layers of a scan, such as those of gradients


def format_profiles(profiles: Mapping[str, StepProfile], top: int = 8) -> str:
    """A table of kinds × steps, in milliseconds and shares, and the longest instructions of each step."""
    labels = list(profiles)
    width = max(20, *(len(label) + 2 for label in labels))
    kinds = [kind for kind in KINDS if any(kind in p.seconds for p in profiles.values())]
    kinds.sort(key=lambda kind: -profiles[labels[0]].seconds.get(kind, 0.0))
    lines = ['time of a step'.ljust(20) + ''.join(label.rjust(width) for label in labels)]
    for kind in kinds:
        cells = [(p.seconds.get(kind, 0.0), p.step_seconds) for p in profiles.values()]
        lines.append(kind.ljust(20) + ''.join(f'{1000 * t:.1f} ms {t / all_:6.1%}'.rjust(width) for t, all_ in cells))
    totals = [f'{1000 * p.step_seconds:.1f} ms {1:6.1%}'.rjust(width) for p in profiles.values()]
    lines.append('sum'.ljust(20) + ''.join(totals))
    for label, one in profiles.items():
        lines.append(f'\nlongest instructions of {label}')
        for time, kind, name, op_name in one.instructions[:top]:
            lines.append(f'{1000 * time:9.1f} ms  {kind:<18} {name}  {_short(op_name)}')
    return '\n'.join(lines)


def _op_name(name: str, program: hlo.Program) -> str:
    if name not in program.instructions:
        return ''
    instruction = program.instructions[name]
    if instruction.op_name:
        return instruction.op_name
    return next((i.op_name for i in reversed(_inside(instruction, program)) if i.op_name), '')


def _short(op_name: str) -> str:
    return re.sub(r'^jit\(\w+\)/|while/body/(closed_call/)?', '', op_name)
