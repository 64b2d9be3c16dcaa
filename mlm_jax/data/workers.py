"""Jobs with records, and processes that do them. These end when their parent process ends, and ignore Ctrl-C.

Where it is safe, the processes are forks of this one: then they need no third of a second to import what it has
imported, in which two cores would prepare 10 MB of text.
"""

import abc
import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from mlm_jax.files import atomic, progress, sealed
from mlm_jax.files.errors import TransientError

_TASKS = '/proc/self/task'  # lists the threads of this process, on Linux
_NOT_SHARED = {'fsspec', 'tensorflow_datasets', 'jax'}  # they keep connections and open files, or start threads


class Job(abc.ABC):
    """Work whose results are files; an object of it is small and can be sent to another process.

    It is done when its record exists, which is written last. The record holds the checksums of the files, so that
    damage is found.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Its name in messages."""

    @property
    @abc.abstractmethod
    def num_bytes(self) -> int:
        """The size of its input."""

    @property
    @abc.abstractmethod
    def record_path(self) -> pathlib.Path:
        """The file of the record."""

    @property
    @abc.abstractmethod
    def files(self) -> dict[str, pathlib.Path]:
        """The other files that it writes, by their names."""

    @abc.abstractmethod
    def run(self) -> int:
        """Does it; returns the size of its text in bytes."""

    def is_begun(self) -> bool:
        """Whether it seems to have been done before."""
        return self.record_path.exists()

    def record(self) -> dict[str, Any]:
        """The record; raises OSError or ValueError if there is none or it is damaged."""
        return sealed.loads(self.record_path.read_bytes())

    def is_done(self) -> bool:
        """Whether it has been done, and its results are undamaged."""
        try:
            known = self.record()['files']
            return all(known[name] == atomic.sha256(path) for name, path in self.files.items())
        except (OSError, ValueError, KeyError):  # not made yet, or damaged
            return False

    def write_record(self, content: dict[str, Any], scratch: pathlib.Path) -> None:
        """Writes the record, with the checksums of the files; `atomic.opened` explains `scratch`."""
        checksums = {name: atomic.sha256(path) for name, path in self.files.items()}
        atomic.write_bytes(self.record_path, sealed.dumps({**content, 'files': checksums}), scratch)


class Engine(Protocol):
    """What does jobs: processes on this machine (`Processes`), or a cluster (`beam.py`). The results are the same."""

    def run(self, jobs: Sequence[Job], title: str, unit: str = 'B') -> None:
        """As `run`, which tells what the arguments are."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process, or `num_workers` others."""

    num_workers: int

    def run(self, jobs: Sequence[Job], title: str, unit: str = 'B') -> None:
        """As the function `run`."""
        run(jobs, self.num_workers, title, unit)


def run(jobs: Sequence[Job], num_workers: int, title: str, unit: str = 'B') -> None:
    """Does those jobs that have not been done, or whose results are damaged.

    Args:
      jobs: the jobs.
      num_workers: the number of processes.
      title: the name of the work in messages.
      unit: the unit of `num_bytes`, if these are no bytes.

    Raises:
      TransientError: if a worker was killed; and everything that a job raises.
    """
    start, total = time.monotonic(), 0
    num_workers = min(num_workers, len(jobs))
    with progress.bar(
        total=sum(job.num_bytes for job in jobs), desc=title, unit=unit, unit_scale=True, disable=not jobs
    ) as bar:
        for job, (was_begun, num_bytes) in _each(jobs, num_workers):
            if num_bytes is not None:
                total += num_bytes
                if was_begun:
                    bar.write(damage(job.name))
            bar.update(job.num_bytes)
    report(title, total, time.monotonic() - start, f'{num_workers} worker{"s" * (num_workers != 1)}')


def damage(name: str) -> str:
    """The message that a job was done before, and is done again."""
    return f'damaged    {name} or its record: it is made again'


def report(title: str, num_bytes: int, seconds: float, who: str) -> None:
    """Prints how fast jobs went through so many bytes of text; nothing if they were done before."""
    if num_bytes:
        megabytes = num_bytes / 1e6
        print(f'{title:10} {megabytes:.1f} MB in {seconds:.1f} s: {megabytes / seconds:.1f} MB/s, {who}')


def num_cores() -> int:
    """The number of cores that this process may use, or of all cores if the system cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def start_method() -> str:
    """How other processes start: 'fork' if this one has a single thread, and no connection that they would share.

    Threads are counted by the system, so that those of libraries in C++ count, too: what they hold would be held
    forever in a fork. Without `_TASKS`, as on macOS, whose own libraries do not survive a fork, it is 'spawn'.
    """
    is_alone = os.path.isdir(_TASKS) and len(os.listdir(_TASKS)) == 1
    return 'fork' if is_alone and not sys.modules.keys() & _NOT_SHARED else 'spawn'


def do(job: Job) -> tuple[bool, int | None]:
    """Does a job if necessary; returns whether it seemed to be done, and the size of its text if it was done now."""
    was_begun = job.is_begun()
    return was_begun, None if was_begun and job.is_done() else job.run()


def _each(jobs: Sequence[Job], num_workers: int) -> Iterator[tuple[Job, tuple[bool, int | None]]]:
    """Does jobs, in this process or in several others, and yields each one when it is finished."""
    if num_workers <= 1:
        yield from ((job, do(job)) for job in jobs)
        return
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context(start_method()), initializer=_start_worker
    ) as pool:
        try:
            yield from _in_pool(pool, jobs, 2 * num_workers)
        except concurrent.futures.process.BrokenProcessPool:
            raise TransientError(
                'a worker was killed, probably because memory ran out: run this again with a smaller --num_workers; '
                'finished work is kept'
            ) from None
        except BaseException:
            for worker in multiprocessing.active_children():  # the next run does their unfinished jobs again
                worker.terminate()
                worker.join()
            raise
        finally:
            # Waits for the thread of the pool: an exit beside it may print a traceback (Python 3.11 wakes the thread by
            # a pipe that the thread is just closing).
            pool.shutdown(cancel_futures=True)


def _in_pool(
    pool: concurrent.futures.Executor, jobs: Sequence[Job], at_once: int
) -> Iterator[tuple[Job, tuple[bool, int | None]]]:
    """Yields jobs as they finish; only `at_once` of them are with the pool, however many there are."""
    waiting = iter(jobs)
    futures: dict[concurrent.futures.Future, Job] = {}
    while True:
        with _interrupts_held():  # workers inherit the blocked signal, so Ctrl-C never interrupts them
            for job in itertools.islice(waiting, at_once - len(futures)):
                futures[pool.submit(do, job)] = job
        if not futures:
            return
        done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            yield futures.pop(future), future.result()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delays Ctrl-C until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Makes this process end with its parent, even if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:  # this is not a worker process
        return
    sentinel = parent.sentinel

    def follow() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
