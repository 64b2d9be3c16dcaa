"""The program beside its workers: what it holds does not grow with the number of jobs."""

import concurrent.futures
import dataclasses
import multiprocessing.queues
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest

from mlm_jax.data import encoding, totals, workers
from mlm_jax.files.errors import TransientError
from mlm_jax.masking.vocabulary import standard_vocabulary


@dataclasses.dataclass(frozen=True)
class Squared(workers.Job):
    """Writes the square of a number."""

    number: int
    directory: str

    @property
    def name(self):
        return f'{self.number}'

    @property
    def num_bytes(self):
        return 1

    @property
    def record_path(self):
        return pathlib.Path(self.directory) / f'{self.number}.json'

    @property
    def files(self):
        return {'square': pathlib.Path(self.directory) / f'{self.number}.txt'}

    def run(self):
        self.files['square'].write_text(f'{self.number**2}')
        self.write_record({}, pathlib.Path(self.directory))
        return 1


def test_jobs_are_done_once_and_again_where_they_are_damaged(tmp_path, capsys):
    jobs = [Squared(number, str(tmp_path)) for number in range(5)]
    workers.run(jobs, 1, 'squares')
    assert capsys.readouterr().out.startswith('squares    0.0 MB')
    workers.run(jobs, 1, 'squares')
    assert capsys.readouterr().out == ''
    (tmp_path / '3.txt').write_text('10')
    (tmp_path / '4.json').write_text('{')
    workers.run(jobs, 1, 'squares')
    said = capsys.readouterr().out
    assert 'damaged    3 or its record' in said and 'damaged    4 or' in said and 'damaged    2' not in said
    assert [int(job.files['square'].read_text()) for job in jobs] == [0, 1, 4, 9, 16]


def test_few_jobs_are_with_the_workers_at_a_time(tmp_path):
    class Pool(concurrent.futures.ThreadPoolExecutor):
        """Counts what was submitted."""

        submitted = 0

        def submit(self, *args):
            self.submitted += 1
            return super().submit(*args)

    jobs = (Squared(number, str(tmp_path)) for number in range(30))
    with Pool(2) as pool:
        for done, (job, _) in enumerate(workers._in_pool(pool, jobs, 4), start=1):
            assert pool.submitted <= done + 4 and job.files['square'].exists()
    assert done == pool.submitted == 30


@dataclasses.dataclass(frozen=True)
class Killed(Squared):
    """Ends as a process for which memory runs out."""

    def run(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_no_error_of_the_configuration(tmp_path):
    with pytest.raises(TransientError, match='a worker was killed.*finished work is kept'):
        workers.run([Killed(number, str(tmp_path)) for number in range(2)], 2, 'squares')


def test_nothing_of_the_pool_is_left_where_work_ends_early(tmp_path, monkeypatch):
    """A thread of the pool that is left over may meet the exit of Python 3.11, which then prints a traceback."""
    ends = multiprocessing.queues.Queue.join_thread
    monkeypatch.setattr(multiprocessing.queues.Queue, 'join_thread', lambda self: time.sleep(0.3) or ends(self))
    before = set(threading.enumerate())
    each = workers._each([Squared(number, str(tmp_path)) for number in range(50)], 2)
    next(each)
    with pytest.raises(KeyboardInterrupt):
        each.throw(KeyboardInterrupt())
    assert set(threading.enumerate()) == before and not multiprocessing.active_children()


@pytest.mark.parametrize('count', [3, 100])
def test_histograms_are_added_up_one_at_a_time(tmp_path, count):
    vocabulary = standard_vocabulary(50_000)
    output = encoding.Output(str(tmp_path), str(tmp_path), str(tmp_path), '', '', 8, 'documents')
    jobs = [encoding.HeldOutJob(output, index, count, 1, ('train', 1), '') for index in range(count)]
    times = np.zeros(vocabulary.size, np.uint8)
    times[[vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id, 7, 8]] = 3, 3, 2, 4, 4
    for job in jobs:
        (tmp_path / job.name).write_bytes(b'')
        np.save(job.histogram_path, times)
        job._finish({'rows': {'rows': 2, 'real_tokens': 14}})
    texts = totals.of_texts([])
    texts.counts['validation'].update(documents=3, words=8 * count, bytes=9, text_tokens=8 * count)
    peaks = []
    for _ in range(3):  # other threads of the process may allocate meanwhile
        tracemalloc.start()
        split, added = totals.of_split('validation', texts, jobs, vocabulary)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    np.testing.assert_array_equal(added, times.astype(np.int64) * count)
    assert (split.rows, split.real_tokens, len(split.shards)) == (2 * count, 14 * count, count)
    assert split.unigram_entropy_nats == pytest.approx(np.log(2))
    assert min(peaks) < 8 * vocabulary.size * 8


def test_processes_are_forked_where_nothing_can_be_held_in_a_fork():
    assert workers.start_method() == 'spawn'  # JAX has threads
    program = (
        'from mlm_jax import prepare; from mlm_jax.data import workers; from mlm_jax.files import progress\n'
        'list(progress.bar([1], desc="bar")); print(workers.start_method())\n'
        'import threading, time; end = threading.Event(); thread = threading.Thread(target=end.wait); thread.start()\n'
        'print(workers.start_method()); end.set(); thread.join(); time.sleep(0.2); print(workers.start_method())\n'
        'import fsspec; print(workers.start_method())'
    )
    environment = os.environ | {'OPENBLAS_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True)
    expected = ['fork', 'spawn', 'fork', 'spawn'] if os.path.isdir('/proc/self/task') else ['spawn'] * 4
    assert done.stdout.split() == expected


def test_a_fork_does_not_hold_the_lock_of_its_parent(tmp_path):
    program = (
        'import os, sys, time; from mlm_jax.data import claim\n'
        'directory, (ready, begun) = claim.pathlib.Path(sys.argv[1]), os.pipe()\n'
        'with claim.locked(directory):\n'
        '    if not (child := os.fork()):\n'
        '        os.write(begun, b"!"); time.sleep(9); os._exit(0)\n'
        '    os.read(ready, 1)\n'
        'try:\n'
        '    with claim.locked(directory):\n'
        '        print("locked again")\n'
        'finally:\n'
        '    os.kill(child, 9)'
    )
    done = subprocess.run([sys.executable, '-c', program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == 'locked again\n'
