"""How the time of a compiled step is spent, by kind of work, from a trace of `jax.profiler` and the compiled program.

The trace tells when and for how long each instruction of the program ran. `kinds_of_work` tells the kind of work of
each instruction, and all of the instruction's time counts for this kind.

The format of traces:
* XLA:CPU writes two events for each launched instruction, each in the thread where it happens. The first lasts as long
  as the thread that launched the instruction is busy with it. The second, 'end: NAME', marks the moment when all
  threads have finished the instruction. A thread works on its innermost open event. Threads without an open event share
  the instructions that have been handed out and are not finished. Each moment is divided among the threads at work, so
  the times add up to the wall-clock time.
* On GPUs, a device has a thread of events for each stream, and `hlo_op` names the instruction. On TPUs, a device has a
  thread 'XLA Ops'.
* A moment without an event is idle.
* Of library kernels that a GPU launches from a CUDA graph, a trace may tell only the name of the kernel. To see which
  products they compute, profile without graphs: XLA_FLAGS=--xla_gpu_enable_command_buffer=
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
_END = 'end: '  # the name of the event at which an instruction is finished starts with this on XLA:CPU
_STREAM = 'Stream'  # names of GPU streams start with this; other threads of such a device repeat the streams' events


@dataclasses.dataclass(frozen=True)
class Event:
    """One run of one instruction; times in microseconds.

    Attributes:
      instruction: the name of the instruction in the HLO, or the name of a kernel if the trace does not tell more.
      start: when it was launched.
      end: when the thread or stream that launched it continued with something else.
      finish: when it was finished, at `end` or later.
      lane: the thread or stream that launched it.
    """

    instruction: str
    start: float
    end: float
    finish: float
    lane: tuple = ()


@dataclasses.dataclass(frozen=True)
class Device:
    """The events on one device.

    Attributes:
      events: the runs of instructions of the program.
      num_workers: the number of lanes that can work at the same time.
    """

    events: list[Event]
    num_workers: int


@dataclasses.dataclass(frozen=True)
class StepProfile:
    """How the time of one step was spent, on average over the traced steps and over devices.

    Attributes:
      seconds: kind of work → its seconds in one step; their sum is the time of a step.
      instructions: the instructions that took the most time, in descending order of it, each as (seconds in one step,
        kind, name, op_name).
    """

    seconds: dict[str, float]
    instructions: list[tuple[float, str, str, str]]

    @property
    def step_seconds(self) -> float:
        """The time of one step, in seconds."""
        return sum(self.seconds.values())


def trace_step(contestant: TrainStep, directory: str | pathlib.Path, num_steps: int = 3) -> StepProfile:
    """Traces some steps and reports how their time was spent.

    Args:
      contestant: a compiled step.
      directory: receives the trace, for TensorBoard or Perfetto, and the HLO of the program.
      num_steps: the number of steps to trace.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = hlo.text_of(contestant.step)
    (directory / 'step.hlo.txt').write_text(text, encoding='utf-8')
    contestant.run(1)  # not traced, because the first step may have to allocate memory
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(directory, profiler_options=options)
    try:
        contestant.run(num_steps)
    finally:
        jax.profiler.stop_trace()
    return read_profile(directory, text, num_steps)


def read_profile(directory: str | pathlib.Path, text: str, num_steps: int, top: int = 12) -> StepProfile:
    """The profile of a program, from the newest trace in a directory.

    Args:
      directory: the directory into which `jax.profiler.trace` wrote.
      text: the optimized HLO, as `hlo.text_of` returns it.
      num_steps: how often the program ran in the trace.
      top: how many instructions to list.

    Raises:
      FileNotFoundError: when there is no trace.
      ValueError: when the program does not occur in the trace.
    """
    return profile(load_trace(directory), hlo.parse(text), num_steps, top)


def load_trace(directory: str | pathlib.Path) -> list[dict]:
    """The events of the newest `*.trace.json.gz` under a directory."""
    found = sorted(pathlib.Path(directory).rglob('*.trace.json.gz'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'{directory} has no file *.trace.json.gz, which jax.profiler.trace writes')
    with gzip.open(found[-1], 'rt', encoding='utf-8') as file:
        return json.load(file)['traceEvents']


def profile(trace: Sequence[Mapping], program: hlo.Program, num_steps: int, top: int = 12) -> StepProfile:
    """The profile of a program, from the events of a trace; see `read_profile`."""
    devices = device_events(trace, program)
    if not devices:
        raise ValueError(f'no instruction of {program.name} occurs in the trace')
    kinds = classify(program)
    seconds = dict.fromkeys(KINDS, 0.0)
    instructions: dict[str, float] = collections.defaultdict(float)
    for device in devices:
        for name, microseconds in wall_time(device).items():
            share = microseconds / 1e6 / num_steps / len(devices)
            seconds[IDLE if name is None else kinds.get(name) or kind_of_kernel(name)] += share
            if name is not None:
                instructions[name] += share
    longest = [
        (time, kinds.get(name) or kind_of_kernel(name), name, op_name_of(name, program))
        for name, time in sorted(instructions.items(), key=lambda pair: -pair[1])[:top]
    ]
    return StepProfile({kind: time for kind, time in seconds.items() if time}, longest)


def device_events(trace: Sequence[Mapping], program: hlo.Program) -> list[Device]:
    """The events of the program on each device; all CPU devices of a process count as one device."""
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
    """Pairs the events of XLA:CPU: an end belongs to the newest launch of its instruction that has no end yet.

    An end event can be late. Therefore an instruction counts as finished at the latest when an instruction that reads
    its result starts, or when it runs again.
    """
    unfinished: dict[str, list[Mapping]] = collections.defaultdict(list)
    finish: dict[int, float] = {}  # by the id of the launch event
    launches: dict[str, list[float]] = collections.defaultdict(list)
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
    """Instruction → its share, in microseconds, of the time from the first event to the last; None: nothing ran."""
    # (time, does an event start?, order, event; None where a handed-out event finishes). At the same time, ends come
    # before starts, and outer events start before inner ones.
    changes: list[tuple[float, int, float, Event | None]] = []
    for event in device.events:
        changes.append((event.start, 1, -event.end, event))
        changes.append((event.end, 0, 0.0, event))
    total: dict[str | None, float] = collections.defaultdict(float)
    lanes: dict[tuple, list[Event]] = collections.defaultdict(list)  # the open events of each lane, innermost last
    handed_out: list[Event] = []
    changes += [(event.finish, 0, 1.0, None) for event in device.events if event.finish > event.end]
    changes.sort(key=lambda change: change[:3])
    now = changes[0][0]
    for time, starts, _, changed in changes:
        if time > now:
            for name, part in _at_work(lanes, handed_out, device.num_workers):
                total[name] += part * (time - now)
            now = time
        if changed is None:
            handed_out = [other for other in handed_out if other.finish > now]
        elif starts:
            lanes[changed.lane].append(changed)
        else:
            if changed in lanes[changed.lane]:
                lanes[changed.lane].remove(changed)
            if changed.finish > changed.end and not _CONTROL_FLOW.match(changed.instruction):
                handed_out.append(changed)
    return dict(total)


def _at_work(
    lanes: Mapping[tuple, list[Event]], handed_out: list[Event], num_workers: int
) -> list[tuple[str | None, float]]:
    """Pairs (instruction, share of the moment); the shares add up to 1. The instruction None means idle."""
    busy = [lane[-1].instruction for lane in lanes.values() if lane]
    free = num_workers - len(busy) if busy else 1
    parts = [(name, 1.0) for name in busy]
    if handed_out and free > 0:
        parts += [(event.instruction, free / len(handed_out)) for event in handed_out]
    whole = sum(part for _, part in parts)
    return [(name, part / whole) for name, part in parts] if parts else [(None, 1.0)]


def format_profiles(profiles: Mapping[str, StepProfile], top: int = 8) -> str:
    """A table with a row for each kind of work and a column for each step, and the longest instructions of each step.

    Args:
      profiles: title of a column → profile.
      top: how many instructions of each step to list.
    """
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
