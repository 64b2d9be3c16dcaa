"""Where the time of a compiled step goes, by kind of work: a trace of `jax.profiler`, read beside the compiled program.

A trace says when which instruction of the program ran, and for how long; `kinds_of_work` says what an
instruction is there for, and that kind gets all of its time.

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

from mlm_jax.performance import hlo
from mlm_jax.performance.kinds_of_work import IDLE, KINDS, classify, kind_of_kernel, op_name_of
from mlm_jax.performance.speed import TrainStep

_CONTROL_FLOW = re.compile(r'(while|conditional|call)\b')
_END = 'end: '  # how XLA:CPU names the event at which an instruction is finished
_STREAM = 'Stream'  # how the threads of GPUs are named; where they are, other threads repeat them


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
        (time, kinds.get(name) or kind_of_kernel(name), name, op_name_of(name, program))
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
    readers = program.readers()
    events = []
    for event in (event for event in trace if not event['name'].startswith(_END)):
        name, end = event['args']['hlo_op'], event['ts'] + event.get('dur', 0)
        bounds = [finish.get(id(event), end)]
        for other in {name} | readers.get(name, set()):
            later = launches[other][bisect.bisect_right(launches[other], event['ts']) :]
            bounds += later[:1]
        events.append(Event(name, event['ts'], end, max(end, min(bounds)), (event['tid'],)))
    return events


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


def _short(op_name: str) -> str:
    return re.sub(r'^jit\(\w+\)/|while/body/(closed_call/)?', '', op_name)
