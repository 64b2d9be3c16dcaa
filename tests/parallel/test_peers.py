"""Processes that watch each other: a lost one is named within the time that is given."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from mlm_jax.parallel import peers

TIMEOUT = 1.5
PATIENCE = 1.0  # after an error of another process

# Joins a run and works on, as training does, from when all are there.
PROGRAM = """
import sys, time, jax
from mlm_jax.parallel import peers
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with peers.watched(2.0):
    print('joined', flush=True)
    time.sleep(60)
"""


class Store:
    """A key-value store as the coordinator's, in this process; `is_gone` and `is_frozen` are what may become of it."""

    def __init__(self):
        self.entries, self.is_gone, self.thaw = {}, False, threading.Event()
        self.thaw.set()

    def key_value_set(self, key, value, allow_overwrite):
        self._reach()
        self.entries[key] = value

    def key_value_dir_get(self, prefix):
        self._reach()
        return [(key, value) for key, value in self.entries.items() if key.startswith(prefix)]

    def _reach(self):
        self.thaw.wait()
        if self.is_gone:
            raise jax.errors.JaxRuntimeError('UNAVAILABLE')


@pytest.fixture
def pair():
    """The store, two watches, and the messages with which they ended."""
    store, messages = Store(), {0: [], 1: []}
    watches = [peers.Watch(store, i, 2, TIMEOUT, messages[i].append, PATIENCE) for i in range(2)]
    yield store, watches, messages
    store.thaw.set()
    for watch in watches:
        watch.finish()


def wait_for(condition, seconds=3 * TIMEOUT):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_processes_that_beat_are_left_alone(pair):
    _, watches, messages = pair
    time.sleep(1.5 * TIMEOUT)
    assert messages == {0: [], 1: []}
    watches[0].finish()  # sooner than the other, which has a picture to draw
    time.sleep(1.5 * TIMEOUT)
    assert messages == {0: [], 1: []}


def test_a_silent_process_is_named_with_its_host_and_a_cure(pair):
    _, watches, messages = pair
    time.sleep(2 * watches[0]._interval)
    watches[1]._stopped.set()
    assert wait_for(lambda: messages[0]), 'in three times the limit'
    assert re.match(
        rf'process 1 \({socket.gethostname()}, pid {os.getpid()}\) has been silent for 1.5 s', messages[0][0]
    )
    assert 'start the same command on all machines again' in messages[0][0]


@pytest.mark.parametrize('fate', ['gone', 'frozen'])
def test_a_coordinator_that_does_not_answer_is_named(pair, fate):
    store, watches, messages = pair
    time.sleep(2 * watches[0]._interval)
    store.is_gone = fate == 'gone'
    if fate == 'frozen':
        store.thaw.clear()
    assert wait_for(lambda: messages[1]) and messages[1][0].startswith('process 0 (')
    assert not messages[0], 'it does not accuse itself'


def test_an_error_of_one_process_ends_the_others_after_a_while(pair):
    _, watches, messages = pair
    watches[1].finish('process 1 ended: the disk is full')
    time.sleep(PATIENCE / 4)
    assert not messages[0]
    time.sleep(PATIENCE)
    assert messages[0] == ['process 1 ended: the disk is full']


def test_a_process_that_fails_as_another_did_ends_by_itself(pair):
    _, watches, messages = pair
    watches[1].finish('process 1 ended: the disk is full')
    time.sleep(PATIENCE / 2)  # in which it writes what is left to write
    watches[0].finish('process 0 ended: the disk is full')
    time.sleep(PATIENCE)
    assert messages == {0: [], 1: []}


def test_an_error_that_another_one_explains_ends_at_once(pair):
    _, watches, messages = pair
    watches[0]._patience = 60.0
    watches[1].finish('process 1 ended: the disk is full')
    threading.Thread(target=watches[0].wait_for_verdict).start()
    assert wait_for(lambda: messages[0], TIMEOUT / 2) and messages[0][0] == 'process 1 ended: the disk is full'


def test_a_process_that_was_stopped_itself_accuses_nobody(pair, monkeypatch):
    """As a laptop that slept: all clocks have moved on, and nobody was heard meanwhile."""
    _, _, messages = pair
    real, jump = time.monotonic, [0.0]
    monkeypatch.setattr(peers.time, 'monotonic', lambda: real() + jump[0])
    time.sleep(TIMEOUT / 2)
    jump[0] = 100.0
    time.sleep(TIMEOUT / 2)
    assert messages == {0: [], 1: []}


def test_a_lost_process_ends_the_other_in_time_with_words():
    """Real ones: process 0 killed, and process 1 frozen; JAX alone aborts after 100 s, or names nobody."""
    cases = {
        (0, signal.SIGKILL): 'process 0',
        (1, signal.SIGSTOP): r'process 1 \(.*, pid \d+\) has been silent for 2 s',
    }
    runs = {case: start_two() for case in cases}
    for (victim, number), said in cases.items():
        processes = runs[victim, number]
        try:
            for process in processes:
                assert any(line == 'joined\n' for line in process.stdout)
            time.sleep(1.0)
            processes[victim].send_signal(number)
            output, _ = processes[1 - victim].communicate(timeout=15)
            last = output.strip().splitlines()[-1]
            assert re.match(f'error: {said}', last) and 'the same command' in last, output
            assert processes[1 - victim].returncode == peers.PEER_LOST_EXIT_CODE
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def start_two() -> list[subprocess.Popen]:
    with socket.socket() as s:
        s.bind(('localhost', 0))
        address = f'localhost:{s.getsockname()[1]}'
    return [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, address, str(i)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
