"""Worker processes that encode shards. They end when their parent process ends, and ignore Ctrl-C."""

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator

from mlm_jax.data import encoding, verification
from mlm_jax.files import progress
from mlm_jax.files.errors import ConfigError


def encode(jobs: list[encoding.Job], num_workers: int) -> dict[encoding.Job, encoding.Counts]:
    """Writes the shards that are missing or damaged, and returns the counts of all shards."""
    begun = [job for job in jobs if job.counts_path.exists()]
    with verification.progress_bar('verifying', sum(job.num_bytes for job in begun)) as bar:
        done = {}
        for job in begun:
            if counts := encoding.finished(job):
                done[job] = counts
            else:
                print(f'damaged    {job.name} or its counts: the shard is made again')
            bar.update(job.num_bytes)
    missing = [job for job in jobs if job not in done]
    start = time.monotonic()
    with progress.bar(
        total=sum(job.num_bytes for job in jobs), initial=sum(job.num_bytes for job in done),
        desc='rows', unit='B', unit_scale=True, disable=not missing,
    ) as bar:  # fmt: skip
        for job, counts in _each(missing, min(num_workers, len(missing))):
            done[job] = counts
            bar.update(job.num_bytes)
    seconds, megabytes = time.monotonic() - start, sum(done[job].bytes for job in missing) / 1e6
    if missing:
        print(
            f'rows       {megabytes:.1f} MB in {seconds:.1f} s: {megabytes / seconds:.1f} MB/s, {num_workers} workers'
        )
    return done


def num_cores() -> int:
    """The number of cores that this process may use, or of all cores if the system cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _each(jobs: list[encoding.Job], num_workers: int) -> Iterator[tuple[encoding.Job, encoding.Counts]]:
    """Encodes shards, in this process or in several others, and yields each one when it is finished."""
    if num_workers <= 1:
        yield from ((job, encoding.encode_shard(job)) for job in jobs)
        return
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker
    ) as pool:
        try:
            with _interrupts_held():  # workers inherit the blocked signal, so Ctrl-C never interrupts them
                futures = {pool.submit(encoding.encode_shard, job): job for job in jobs}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise ConfigError(
                'a worker was killed, probably because memory ran out: run this again with a smaller --num_workers; '
                'finished shards are kept'
            ) from None
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():  # the next run makes their unfinished shards again
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
