"""Does the jobs of a preparation as pipelines of Apache Beam (extra `beam`): on Dataflow, Flink or Spark, or here.

Each phase of a preparation is a pipeline: Create(jobs) | Reshuffle | Map(do) | CombineGlobally. The jobs are those that
processes here do (`workers.py`), so what they write is the same to the byte, and those that are done are not done
again, whether a pipeline, a process or a task has done them. A runner may do a job twice, even at the same time.

All results are files in the directory of the rows and in its working directory, which the machines of the runner must
see, and so must they see the corpus. Two small files there tell how a pipeline went: what all jobs have done together,
and the error of a job that the user has to mend, after which the other jobs are not begun.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

from mlm_jax.data import workers
from mlm_jax.files import atomic, buckets
from mlm_jax.files.errors import ConfigError, TransientError

_DONE, _ERROR = 'pipeline.json', 'pipeline_error.json'


@dataclasses.dataclass(frozen=True)
class Pipelines:
    """An engine (`workers.Engine`) that runs pipelines.

    Attributes:
      options: Beam's own, such as '--runner=FlinkRunner', as a command line has them; none for its direct runner.

    Raises:
      ConfigError: if an option has a wrong value; and without apache-beam.
    """

    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        _parse(self.options)

    def run(self, jobs: Sequence[workers.Job], title: str, unit: str = 'B') -> None:
        """As `workers.run`.

        Raises:
          ConfigError: of a job; and if its machines do not see the directory of the jobs.
          TransientError: if the pipeline fails.
        """
        if not jobs:
            return
        working = jobs[0].record_path.parent
        for name in (_DONE, _ERROR):
            (working / name).unlink(missing_ok=True)
        print(f'{title:10} a pipeline of Apache Beam with {len(jobs)} job{"s" * (len(jobs) != 1)}', flush=True)
        start = time.monotonic()
        try:
            _run_pipeline(jobs, str(working), self.options)
        except Exception as error:  # each runner has errors of its own
            _raise_error_of_job(working)
            reason = _last_line(str(error)) or type(error).__name__
            raise TransientError(
                f'the pipeline of Apache Beam failed: {reason}\nThe log of the runner may say more. Finished work is '
                'kept: the same command goes on from here'
            ) from error
        _raise_error_of_job(working)
        done = _read_done(working)
        for name in done['damaged']:
            print(workers.damage(name))
        workers.report(title, done['bytes'], time.monotonic() - start, 'Apache Beam')


def _run_pipeline(jobs: Sequence[workers.Job], working: str, options: Sequence[str]) -> None:
    """Runs one pipeline to its end."""
    beam = _apache_beam()
    pipeline = beam.Pipeline(options=_parse(options))
    (
        pipeline
        | 'Jobs' >> beam.Create(list(jobs))
        | 'Spread' >> beam.Reshuffle()
        | 'Do' >> beam.Map(_do, working)
        | 'Add up' >> beam.CombineGlobally(_add_up)
        | 'Write' >> beam.Map(_write_done, working)
    )
    running = pipeline.run()
    try:
        state = running.wait_until_finish()
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):  # not every runner can
            running.cancel()
        raise
    if state != beam.runners.runner.PipelineState.DONE:
        raise RuntimeError(f'it ended as {state}')


def _parse(options: Sequence[str]) -> Any:
    """Beam's options; argparse reads them, which prints what is wrong, under two hundred lines of usage, and exits."""
    _apache_beam()
    from apache_beam.options import pipeline_options

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed = pipeline_options.PipelineOptions(list(options))
            parsed.get_all_options()
    except SystemExit:
        reason = _last_line(printed.getvalue()).rpartition('error: ')[2]
        raise ConfigError(f'Apache Beam does not take -- {" ".join(options)}: {reason}') from None
    return parsed


# ---- On the machines of the runner ---------------------------------------------------------------------------------


def _do(job: workers.Job, working: str) -> dict[str, Any]:
    """Does a job if necessary, and unless another has failed; returns the size of its text, and if it was damaged."""
    error = buckets.path(working) / _ERROR
    if not error.exists():
        try:
            was_begun, num_bytes = workers.do(job)
        except ConfigError as reason:
            told = {'message': str(reason), 'is_transient': isinstance(reason, TransientError)}
            atomic.write_bytes(error, json.dumps(told).encode())
        else:
            is_damaged = was_begun and num_bytes is not None
            return {'bytes': num_bytes or 0, 'damaged': [job.name] if is_damaged else []}
    return {'bytes': 0, 'damaged': []}


def _add_up(done: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sum of what jobs, or groups of them, have done."""
    total: dict[str, Any] = {'bytes': 0, 'damaged': []}
    for each in done:
        total = {key: total[key] + each[key] for key in total}
    return {'bytes': total['bytes'], 'damaged': sorted(total['damaged'])}


def _write_done(total: dict[str, Any], working: str) -> None:
    atomic.write_bytes(buckets.path(working) / _DONE, json.dumps(total).encode())


# ---- Here again ----------------------------------------------------------------------------------------------------


def _raise_error_of_job(working: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        told = json.loads((working / _ERROR).read_bytes())
        raise (TransientError if told['is_transient'] else ConfigError)(told['message'])


def _read_done(working: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads((working / _DONE).read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f'the pipeline of Apache Beam has left nothing in {working}: its machines write to a disk of their own. '
            'Name a data.directory and a corpus in a bucket, or on a disk that all machines share'
        ) from None


def _last_line(text: str) -> str:
    """The last line that is not empty; '' if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), '')


def _apache_beam() -> Any:
    try:
        import apache_beam
    except ImportError:
        raise ConfigError("--beam needs the package apache-beam: pip install 'mlm_jax[beam]'") from None
    return apache_beam
