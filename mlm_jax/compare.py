"""Trains the same model under several strategies or objectives at an equal budget, with several seeds each.

    python -m mlm_jax.compare --config=configs/mlm.py:mini --config=configs/mae_lm.py:mini --budget=flops \\
        --seeds=0,1,2 --then=finetune:glue/sst2,effective_rank --data=glue=data/glue --output=runs/mlm_against_mae_lm

The length of the first configuration is the budget, in FLOPs, in steps or in time; the lengths of the others follow
from it. Each run is an ordinary one, in `<output>/<label>/seed<k>`. With --then each pretrained model is then judged:
fine-tuned, by BLiMP, by probes. Started again, the program does what is missing, and goes on with what was interrupted.
From the second run of the first seed on, and then after each seed, it writes `report.md`, and the data that it is made
of: `experiment.json`, `metrics.json`, `curves.jsonl` and `figure.png`, in the form of an experiment of docs/results/.

Seeds can be run apart, each machine with its own --output; --join then makes one report of them:

    python -m mlm_jax.compare --join=runs/seed0 --join=runs/seeds1_2 --output=runs/all_seeds
"""

import dataclasses
import pathlib
import shlex
import signal
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
from absl import flags

from mlm_jax import train
from mlm_jax.comparing import budgets, comparison, configurations, existing, experiment, joining, judges, report, then
from mlm_jax.comparing.configurations import Candidate
from mlm_jax.comparing.experiment import Table
from mlm_jax.comparing.judges import Judge
from mlm_jax.config import ConfigError, command_line
from mlm_jax.data import prepared_data
from mlm_jax.files import buckets, paths
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import loading, sources, warm_start
from mlm_jax.training import runtime
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.workdir import held


@dataclasses.dataclass(frozen=True)
class Work:
    """A run that is to be trained, or to be judged.

    Attributes:
      candidate: its configuration.
      seed: of the run.
      workdir: of the run.
      cost: of work of its kind, in one unit.
      judge: None trains.
    """

    candidate: Candidate
    seed: int
    workdir: pathlib.Path
    cost: float
    judge: Judge | None = None

    @property
    def kind(self) -> str:
        """What takes as long for as much cost."""
        return str(self.judge.measure) if self.judge else 'training'

    def __str__(self) -> str:
        """For the line that announces it."""
        what = self.judge.measure if self.judge else f'{self.candidate.config.total_steps:,} steps'
        return f'{self.candidate.label}, seed {self.seed}, {what}'


class Progress:
    """Says before each piece of work which one it is, and when all will be done."""

    def __init__(self, work: Sequence[Work]):
        """`work`: what is to come, in order."""
        self._left, self._number = list(work), len(work)
        self._spent: dict[str, tuple[float, float]] = {}  # kind → cost and seconds of what is done
        self._now: Work | None = None
        self._start = time.perf_counter()

    def next(self, work: Work) -> None:
        """Announces the next piece, with the time that all that is left takes, as far as such work was timed."""
        now = time.perf_counter()
        if self._now:
            cost, seconds = self._spent.get(self._now.kind, (0.0, 0.0))
            self._spent[self._now.kind] = cost + self._now.cost, seconds + now - self._start
        self._start, self._now = now, work
        place, eta = self._number - len(self._left) + 1, self._eta()
        self._left.pop(0)
        _note(f'=== {place} of {self._number}: {work}{eta}')

    def _eta(self) -> str:
        timed = [work for work in self._left if work.kind in self._spent]
        if not timed:
            return ''
        seconds = sum(self._spent[work.kind][1] / self._spent[work.kind][0] * work.cost for work in timed)
        others = dict.fromkeys(work.kind for work in self._left if work.kind not in self._spent)
        besides = f', and {", ".join(others)} besides' if others else ''
        return f'; what is left takes about {_duration(seconds)}{besides}'


def _duration(seconds: float) -> str:
    for unit, size in (('h', 3600), ('min', 60)):
        if seconds > 1.5 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} s'


def missing_work(
    candidates: Sequence[Candidate], seeds: Sequence[int], output: pathlib.Path, chosen: Sequence[Judge]
) -> list[Work]:
    """What is not done: seed by seed, the training of all candidates, and then their judging.

    Raises:
      ConfigError: when something else is there.
    """
    work = []
    for seed in seeds:
        runs = [(candidate, _workdir(output, candidate, seed)) for candidate in candidates]
        left = [1 - existing.updates_done(workdir, c.of_seed(seed)) / c.config.total_steps for c, workdir in runs]
        work += [Work(c, seed, at, c.cost * share) for (c, at), share in zip(runs, left, strict=True) if share > 0]
        for (candidate, workdir), share in zip(runs, left, strict=True):
            missing = [judge for judge in chosen if share > 0 or not judge.is_done(candidate, seed, workdir)]
            work += [Work(candidate, seed, workdir, 1.0, judge) for judge in missing]
    return work


def run_all(
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    output: pathlib.Path,
    write: Callable[[Sequence[Candidate], Sequence[int]], None],
    chosen: Sequence[Judge] = (),
) -> list[str]:
    """Trains and judges what is missing: all candidates under the first seed, then under the next.

    Args:
      candidates: with their lengths.
      seeds: in this order.
      output: the runs are in `<output>/<label>/seed<k>`.
      write: called with the candidates and seeds that can be reported, each time there is another: with those that are
        trained under the first seed, two or more; then with all, and the seeds that are complete.
      chosen: judge each run when it is trained.

    Returns:
      What is to be said of fine-tuning that diverged; everything else is done.
    """
    work = missing_work(candidates, seeds, output, chosen)  # all are checked before the first one is trained
    num_runs = len(candidates) * len(seeds)
    if finished := num_runs - sum(part.judge is None for part in work):
        _note(f'{finished} of {num_runs} runs are there already')
    progress, diverged = Progress(work), []
    for i, seed in enumerate(seeds):
        of_seed = [part for part in work if part.seed == seed]
        untrained = {part.candidate.label for part in of_seed if part.judge is None}
        for part in of_seed:
            progress.next(part)
            if part.judge is None:
                _train(part.candidate, seed, part.workdir)
                untrained.remove(part.candidate.label)
                trained = [candidate for candidate in candidates if candidate.label not in untrained]
                if i == 0 and 1 < len(trained) < len(candidates):
                    write(trained, [seed])
            else:
                diverged += _judge(part, part.judge)
        if of_seed or seed == seeds[-1]:
            write(candidates, seeds[: i + 1])
    return diverged


def _judge(work: Work, judge: Judge) -> list[str]:
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
        try:
            # The last checkpoint or none: one before it, if that is damaged, is not the end of pretraining.
            source = sources.parse(f'{work.workdir}')
            model = loading.load(dataclasses.replace(source, step=work.candidate.config.total_steps), mesh)
            judge.judge(model, work.candidate, work.seed, work.workdir)
        except FloatingPointError as error:
            return [str(error)]
    return []


def _train(candidate: Candidate, seed: int, workdir: pathlib.Path) -> None:
    # In this process: the mesh of several processes, and the memory of a GPU, are not to be had a second time.
    # A run ends at a signal by itself between its first step and its last. Before, it has nothing to save; behind them,
    # nobody but this program hears the signal.
    signalled = []

    def handle(number: int, frame: types.FrameType | None) -> None:
        signalled.append(number)
        if signal.getsignal(number) is handle:  # the run does not listen yet
            _stop()

    handlers = {}
    for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ():  # else jax listens
        handlers[number] = signal.signal(number, handle)
    try:
        train.train(candidate.of_seed(seed), workdir)
    except FloatingPointError as error:
        raise FloatingPointError(f'{candidate.label}, seed {seed}: {error}') from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if signalled:
        _stop()


def _stop() -> NoReturn:
    _note('stopped by a signal; the same command goes on from here')
    raise command_line.Stopped(runtime.PREEMPTED_EXIT_CODE)


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
            seconds[seed] = existing.train_seconds(workdir)
        entries[candidate.label] = comparison.Entry(
            name=candidate.name,
            total_steps=config.total_steps,
            tokens=config.total_steps * config.batch_size * config.sequence_length,
            flops=candidate.cost,
            step_cost=candidate.step_cost,
            runs=runs,
            train_seconds=seconds,
            repeats=config.masking.repeats,
        )
    return entries


def tables_of(
    chosen: Sequence[Judge], candidates: Sequence[Candidate], seeds: Sequence[int], output: pathlib.Path
) -> list[Table]:
    """What the judges have found, a table for each and each unit of its numbers."""
    tables = []
    for judge in chosen:
        found = {
            c.label: {seed: judge.values(c, seed, _workdir(output, c, seed)) for seed in seeds} for c in candidates
        }
        units = dict.fromkeys(unit for by_seed in found.values() for values in by_seed.values() for unit in values)
        for unit in units:
            of_unit = {
                label: {seed: values.get(unit, {}) for seed, values in by_seed.items()}
                for label, by_seed in found.items()
            }
            name = judge.measure.title + (f' ({unit})' if len(units) > 1 else '')
            tables.append(comparison.judged_table(name, judge.describe(), unit, judges.FORMATS[unit], of_unit))
    return tables


def write_report(
    candidates: Sequence[Candidate], seeds: Sequence[int], output: pathlib.Path, values: flags.FlagValues,
    chosen: Sequence[Judge] = (),
) -> str:  # fmt: skip
    """Writes the experiment of the seeds that are complete, its figure and its page; returns the page."""
    settings = {'budget': values.budget, 'rows': prepared_data.load(candidates[0].config.data).identity()}
    for candidate in candidates:  # a file of configurations, and a task, may be another one elsewhere
        digest = configurations.digest(prepared_data.resolve(candidate.config)[0])
        settings[candidate.label] = f'`{candidate.name}` ({digest})'
    settings |= {judge.measure.title: judge.data for judge in chosen if judge.data}
    # Two machines have the same settings where they compute the same, wherever their files lie.
    untold = (*configurations.WITHOUT_INFLUENCE, 'data.directory')
    told = [text for text in values.set if not configurations.is_under(text, untold)]
    settings |= {'all': f'`{" ".join(told)}`'} if told else {}
    made = report.make_experiment(
        collect(candidates, seeds, output),
        values.budget,
        values.metric,
        tables_of(chosen, candidates, seeds, output),
        [_workdir(output, candidate, seed) for candidate in candidates for seed in seeds],
        ' \\\n    '.join(['python -m mlm_jax.compare', *map(shlex.quote, sys.argv[1:])]),
        settings,
        output.absolute().name,
    )
    return report.write(made, output)


def _note(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Trains, judges, and reports after each seed."""
    with runtime.distributed(flags.FLAGS):
        compare(flags.FLAGS)


def make_judges(values: flags.FlagValues, candidates: Sequence[Candidate]) -> list[Judge]:
    """The judges of --then, which can judge all candidates.

    Raises:
      ConfigError, ImportError: for whatever would stop one of them after hours of training.
    """
    measures = then.parse(values.then)
    if values.data and not any(measure.kind == then.FINETUNE for measure in measures):
        raise ConfigError('--data says where the tasks of --then=finetune:TASK lie, and there are none')
    if measures and jax.process_count() > 1:
        raise ConfigError(
            '--then judges models in one process, and this is one of several. Leave it out here; then run the same '
            'command with it on one machine, which finds the runs trained'
        )
    command_line.check_file_names([measure.name for measure in measures], 'Give fewer options to --then')
    chosen = [judges.make(measure, values.data) for measure in measures]
    for candidate in candidates if chosen else ():
        model = judges.stand_in(candidate, mesh_lib.make_mesh())
        for judge in chosen:
            try:
                judge.check(model)
            except ConfigError as error:
                raise ConfigError(f'--then={judge.measure} cannot judge {candidate.label}: {error}') from None
    return chosen


def join(values: flags.FlagValues) -> None:
    """Writes the report of comparisons whose seeds were run apart; trains and judges nothing.

    Raises:
      ConfigError: when they are not parts of one comparison, or other flags say what to run.
    """
    if given := [name for name in ('config', 'set', 'label', 'then', 'data') if getattr(values, name)]:
        raise ConfigError(f'--join makes a report of what has run, and takes --output only, not --{given[0]}')
    output = buckets.path(values.output).expanduser()
    parts = {path: experiment.read(buckets.path(path).expanduser()) for path in values.join}
    joined = joining.join(parts)
    if joined.title == pathlib.PurePath(values.join[0]).name:  # nobody has given it another one
        joined = dataclasses.replace(joined, title=output.absolute().name)
    report.check(output)
    with held(output):
        print(f'\n{report.write(joined, output)}\n{output / report.PAGE}', flush=True)


def pinned(candidate: Candidate, output: pathlib.Path) -> Candidate:
    """The candidate with the commit of the model on the hub that its runs begin with: that of a run that is there."""
    runs = sorted((output / candidate.label).glob('seed*'))
    config = candidate.config.copy_and_resolve_references()
    config.init_from = warm_start.pinned(config.init_from, runs[0] if runs else output)
    return dataclasses.replace(candidate, config=config)


def check(candidates: Sequence[Candidate], metric: str) -> None:
    """Raises ConfigError for what would stop a run, or the report, after hours of other runs."""
    for candidate in candidates:
        resolved, data = prepared_data.resolve(candidate.config)
        try:
            warm_start.check_source(resolved, data.manifest)
            runtime.make_mesh(resolved)
            if metric:
                comparison.check_metric(metric, judges.held_out_metrics(candidate), bool(resolved.ema.decay))
        except ConfigError as error:
            raise ConfigError(f'{candidate.label}: {error}') from None


def compare(values: flags.FlagValues) -> None:
    """The program, in this process and those that it works with."""
    if values.join:
        return join(values)
    if not values.config:
        raise ConfigError('say what to compare, --config=FILE for each of two or more; or --join=DIRECTORY, --help')
    output, seeds = buckets.path(values.output).expanduser(), command_line.parse_seeds(values.seeds)
    candidates = configurations.load_candidates(values.config, values.label, values.set)
    candidates = [pinned(candidate, output) for candidate in candidates]
    command_line.check_file_names([candidate.label for candidate in candidates], 'Give shorter ones with --label=NAME')
    runtime.use_compilation_cache(candidates[0].config.compilation_cache)
    check(candidates, values.metric)
    chosen = make_judges(values, candidates)
    report.check(output)

    def write(done: Sequence[Candidate], complete: Sequence[int]) -> None:
        if jax.process_index() == 0:
            text = write_report(done, complete, output, values, chosen)
            shown = f'\n{text}\n' if len(done) == len(candidates) else f'{len(done)} of {len(candidates)} are in '
            print(f'{shown}{output / report.PAGE}', flush=True)

    with held(output):
        candidates = budgets.share_budget(candidates, values.budget, output)
        if not values.label:
            candidates = existing.labelled_as_before(candidates, output, _note)
        for candidate in candidates:
            _note(f'{candidate.label}: {candidate.config.total_steps:,} steps    {candidate.name}')
        diverged = run_all(candidates, seeds, output, write, chosen)
    if diverged:
        raise FloatingPointError('not all fine-tuning came to its end:\n' + '\n'.join(diverged))


def define_flags() -> None:
    """Defines the flags that `main` reads."""
    command_line.define_config_flags()
    flags.DEFINE_enum('budget', 'flops', list(budgets.UNITS), 'What is equal; the length of the first one sets it.')
    flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs of each configuration.')
    flags.DEFINE_multi_string('label', [], 'Name of a configuration, repeated in their order; made up unless given.')
    flags.DEFINE_string(
        'metric', '',
        'Metric to compare: eval/masked_nll where runs have it, else eval/loss. The loss and the accuracy of ExLM do '
        'not compare with those of other objectives.',
    )  # fmt: skip
    flags.DEFINE_multi_string('then', [], then.help_text())
    paths.define_flag(
        'data', [], 'Where tasks of --then=finetune lie: DIRECTORY, SUITE=DIRECTORY or SUITE/TASK=DIRECTORY; or tfds.',
        multiple=True,
    )  # fmt: skip
    paths.define_flag(
        'join', [], 'Trains nothing: the output of a comparison whose other seeds were run elsewhere, as on another '
        'machine; repeated. All seeds are reported together in --output.', 'directory', multiple=True,
    )  # fmt: skip
    paths.define_flag('output', None, 'Directory for the runs and the report.', 'directory')
    runtime.define_distributed_flags()


if __name__ == '__main__':
    define_flags()
    command_line.run(main, required=('output',))
