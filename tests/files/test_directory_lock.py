"""One program writes into a directory; a lock that a killed one left is none."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from mlm_jax.config import ConfigError
from mlm_jax.files import directory_lock

HOLD = (
    'import pathlib, sys, time; from mlm_jax.files import directory_lock\n'
    'with directory_lock.sole_writer(pathlib.Path(sys.argv[1])): print("held", flush=True); time.sleep(60)'
)


def test_a_second_program_is_refused_with_the_first_ones_name_until_that_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'held\n'
        said = f'in use by process {process.pid} on {socket.gethostname()}, since 20'
        with pytest.raises(ConfigError, match=said), directory_lock.sole_writer(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert json.loads((tmp_path / directory_lock.LOCK_FILE).read_bytes())['pid'] == process.pid, 'it was killed'
    with directory_lock.sole_writer(tmp_path):
        assert json.loads((tmp_path / directory_lock.LOCK_FILE).read_bytes())['pid'] == os.getpid()
    assert not (tmp_path / directory_lock.LOCK_FILE).read_bytes()


def test_a_file_system_without_locks_is_told_by_the_name(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', unsupported)
    for holder, is_over in (
        ({'pid': os.getpid(), 'host': socket.gethostname()}, False),
        ({'pid': 2**22 + 1, 'host': socket.gethostname()}, True),
        ({'pid': 1, 'host': 'another machine'}, False),
    ):
        (tmp_path / directory_lock.LOCK_FILE).write_text(json.dumps(holder))
        if is_over:
            with directory_lock.sole_writer(tmp_path):
                continue
        said = r'seems to be in use by process .* If that process has ended, delete '
        with pytest.raises(ConfigError, match=said), directory_lock.sole_writer(tmp_path):
            pass


def test_leftovers_of_killed_writes_go_and_nothing_else(tmp_path):
    (tmp_path / 'seed1').mkdir()
    kept = [tmp_path / name for name in ('notes.tmp', 'a.7.tmp.txt', 'metrics.jsonl')]
    gone = [tmp_path / 'metrics.jsonl.123.tmp', tmp_path / 'seed1' / 'result.json.9.tmp']
    for path in (*kept, *gone):
        path.write_text('x')
    with directory_lock.sole_writer(tmp_path):
        assert all(path.exists() for path in kept) and not any(path.exists() for path in gone)


def test_a_full_disk_is_said_before_work_begins(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left') as raised, directory_lock.sole_writer(tmp_path):
        pass
    assert raised.value.filename == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [directory_lock.LOCK_FILE]
