"""Trains the same model under several strategies or objectives at an equal budget, with several seeds each.

    python -m mlm_jax.compare --config=configs/mlm.py:mini --config=configs/mae_lm.py:mini --budget=flops \\
        --seeds=0,1,2 --output=runs/mlm_against_mae_lm

The length of the first configuration is the budget, in FLOPs, in steps or in time; the lengths of the others follow
from it. Each run is an ordinary one, in `<output>/<label>/seed<k>`. Started again, the program trains what is missing,
and goes on with what was interrupted. After each seed it writes `comparison.md`, `comparison.json` and
`comparison.png`.
"""

import dataclasses
import json
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from mlm_jax import config as config_lib
from mlm_jax import train
from mlm_jax.comparing import comparison, configurations
from mlm_jax.comparing.configurations import Candidate
from mlm_jax.config import ConfigError, command_line, step_flops
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import atomic, paths
from mlm_jax.performance import speed
from mlm_jax.training import checkpoints, runtime
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.workdir import held, read_config, read_json

TIMING_FILE = 'timing.json'


def updates_done(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> int:
    """The steps that are done, and saved, of the run in `workdir`; 0 where there is none.

    Raises:
      ConfigError: when the run is not that of `config`.
    """
    if not (workdir / 'config.json').exists():
        return 0
    manifest = manifest_lib.load(config.data.directory)
    steps_per_epoch = manifest.split('train').rows / config.batch_size
    old = config_lib.in_steps(read_config(workdir), steps_per_epoch)
    different = configurations.differences(old, config_lib.resolve(config, manifest))
    if different:
        lines = (f'  {key}: {a!r} there, {b!r} now' for key, (a, b) in different.items())
        raise ConfigError(
            f'{workdir} holds a run of another configuration:\n' + '\n'.join(lines) + '\n'
            'Ask for what is there, choose another --output, or delete that directory to train it again'
        )
    if not (workdir / 'checkpoints').is_dir():
        return 0
    saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
    # Of a run that is over, the report reads the position only; one that is not is looked at when it goes on.
    step = saver.checked(items=[checkpoints.POSITION]) if saver.all_steps() else 0
    saver.close()
    return step


class Progress:
    """Says before each run which one it is, and when all will be done."""

    def __init__(self, costs: Sequence[float]):
        """`costs`: of the runs to come, in any unit."""
        self._costs, self._done, self._start = list(costs), 0, time.perf_counter()

    def next(self, text: str) -> None:
        """Announces the next run; from the second one on with the time left."""
        done, left = sum(self._costs[: self._done]), sum(self._costs[self._done :])
        eta = ''
        if done:
            seconds = (time.perf_counter() - self._start) / done * left
            eta = f'; all that is left takes about {_duration(seconds)}'
        self._done += 1
        _note(f'=== run {self._done} of {len(self._costs)}: {text}{eta}')


def _duration(seconds: float) -> str:
    for unit, size in (('h', 3600), ('min', 60)):
        if seconds > 1.5 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} s'


def train_all(candidates: Sequence[Candidate], seeds: Sequence[int], output: pathlib.Path, after_seed) -> None:
    """Trains what is missing: all candidates under the first seed, then under the next.

    Args:
      candidates: with their lengths.
      seeds: in this order.
      output: the runs are in `<output>/<label>/seed<k>`.
      after_seed: called with the seeds that are complete, each time another one is, and at the end.
    """
    done = {
        (candidate.label, seed): updates_done(_workdir(output, candidate, seed), candidate.of_seed(seed))
        for seed in seeds
        for candidate in candidates
    }  # all are checked before the first one is trained
    missing = {
        (c.label, seed): c.cost * (1 - done[c.label, seed] / c.config.total_steps)
        for seed in seeds
        for c in candidates
        if done[c.label, seed] < c.config.total_steps
    }
    if finished := len(done) - len(missing):
        _note(f'{finished} of {len(done)} runs are there already')
    progress = Progress(list(missing.values()))
    for i, seed in enumerate(seeds):
        to_train = [candidate for candidate in candidates if (candidate.label, seed) in missing]
        for candidate in to_train:
            progress.next(f'{candidate.label}, seed {seed}, {candidate.config.total_steps:,} steps')
            _train(candidate, seed, _workdir(output, candidate, seed))
        if to_train or seed == seeds[-1]:
            after_seed(seeds[: i + 1])


def _train(candidate: Candidate, seed: int, workdir: pathlib.Path) -> None:
    # In this process: the mesh of several processes, and the memory of a GPU, are not to be had a second time.
    # A run ends at a signal by itself, unless that comes behind its last step: then nobody but this program hears it.
    signalled = []
    handlers = {}
    for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ():  # else jax listens
        handlers[number] = signal.signal(number, lambda number, frame: signalled.append(number))
    try:
        train.train(candidate.of_seed(seed), workdir)
    except FloatingPointError as error:
        raise FloatingPointError(f'{candidate.label}, seed {seed}: {error}') from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if signalled:
        _note('stopped by a signal; the same command goes on from here')
        sys.exit(runtime.PREEMPTED_EXIT_CODE)


def _workdir(output: pathlib.Path, candidate: Candidate, seed: int) -> pathlib.Path:
    return output / candidate.label / f'seed{seed}'


def collect(candidates: Sequence[Candidate], seeds: Sequence[int], output: pathlib.Path) -> dict:
    """Label → Entry, of finished runs."""
    entries = {}
    for candidate in candidates:
        config, runs, seconds = candidate.config, {}, {}
        for seed in seeds:
            workdir = _workdir(output, candidate, seed)
            runs[seed] = read_metrics(workdir / 'metrics.jsonl')
            saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
            seconds[seed] = saver.restore_position().train_seconds
            saver.close()
        entries[candidate.label] = comparison.Entry(
            name=candidate.name,
            total_steps=config.total_steps,
            tokens=config.total_steps * config.batch_size * config.sequence_length,
            flops=config.total_steps * step_flops.step_flops(config),
            step_cost=candidate.step_cost,
            runs=runs,
            train_seconds=seconds,
        )
    return entries


def write_report(entries: dict, budget: str, metric: str, settings: Sequence[str], output: pathlib.Path) -> str:
    """Writes comparison.json, comparison.md and comparison.png; returns the Markdown."""
    summary = comparison.summarize(entries, metric)
    first = next(iter(summary.values()))
    seeds = list(first['by_seed'])
    device = jax.devices()[0].device_kind
    spent = {'flops': f'{first["spent"]:.3g}', 'steps': f'{first["steps"]:,}'}.get(budget, f'{first["spent"]:,.0f}')
    how = ', with the length of a step measured in turn' if budget == 'time' else ''
    text = (
        f'Equal {comparison.UNITS[budget]}: {spent} a run{how}.\n'
        f'Seeds {", ".join(seeds)}; {jax.device_count()} × {device}.\n'
        'Means ± standard errors over seeds, held out; differences are paired by seed.\n\n'
        f'{comparison.markdown_table(summary)}\n'
        + ''.join(f'* {label}: `{line["config"]}`\n' for label, line in summary.items())
        + (f'* all: `{" ".join(settings)}`\n' if settings else '')
    )
    report = {
        'budget': budget,
        'seeds': [int(seed) for seed in seeds],
        'settings': list(settings),
        'device': device,
        'num_devices': jax.device_count(),
        'configurations': summary,
    }
    atomic.write_bytes(output / 'comparison.json', f'{json.dumps(report, indent=2)}\n'.encode())
    atomic.write_bytes(output / 'comparison.md', text.encode())
    comparison.draw(summary, budget, output / 'comparison.png')
    return text


def _note(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Trains, and reports after each seed."""
    with runtime.distributed(flags.FLAGS):
        compare(flags.FLAGS)


def compare(values: flags.FlagValues) -> None:
    """The program, in this process and those that it works with."""
    output, seeds = pathlib.Path(values.output).expanduser(), command_line.parse_seeds(values.seeds)
    candidates = configurations.load_candidates(values.config, values.label, values.set)
    command_line.check_file_names([candidate.label for candidate in candidates], 'Give shorter ones with --label=NAME')
    runtime.use_compilation_cache(candidates[0].config.compilation_cache)

    def report(complete: Sequence[int]) -> None:
        if jax.process_index() == 0:
            entries = collect(candidates, complete, output)
            text = write_report(entries, values.budget, values.metric, values.set, output)
            print(f'\n{text}\n{output / "comparison.md"}\n{output / "comparison.png"}', flush=True)

    with held(output):
        candidates = share_budget(candidates, values.budget, output)
        for candidate in candidates:
            _note(f'{candidate.label}: {candidate.config.total_steps:,} steps    {candidate.name}')
        train_all(candidates, seeds, output, report)


if __name__ == '__main__':
    command_line.define_config_flags()
    flags.adopt_module_key_flags(command_line)
    flags.DEFINE_enum('budget', 'flops', list(comparison.UNITS), 'What is equal; the length of the first one sets it.')
    flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs of each configuration.')
    flags.DEFINE_multi_string('label', [], 'Name of a configuration, repeated in their order; made up unless given.')
    flags.DEFINE_string('metric', '', 'Metric to compare: eval/masked_nll where runs have it, else eval/loss.')
    paths.define_flag('output', None, 'Directory for the runs, the table and the picture.', 'directory')
    runtime.define_distributed_flags()
    flags.adopt_module_key_flags(runtime)
    command_line.run(main, required=('config', 'output'))
