"""One holder of a file, or several that share it; the file goes with the holder that does not share it."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys

import pytest

from mlm_jax.config import ConfigError
from mlm_jax.data import claim
from mlm_jax.files import file_lock

HOLD = (
    'import pathlib, sys, time; from mlm_jax.files import file_lock\n'
    'with file_lock.held(pathlib.Path(sys.argv[1])): print("held", flush=True); time.sleep(60)'
)
_flock = fcntl.flock


def as_on_nfs(descriptor, operation):
    """Other machines learn of locks on files alone, and exclusive ones need a file that is open for writing."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return
    if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    _flock(descriptor, operation)


def test_a_prepared_directory_is_locked_on_nfs(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, 'flock', as_on_nfs)
    with claim.locked(tmp_path) as is_locked:
        assert is_locked
        for shared in (False, True):
            with pytest.raises(ConfigError, match='another prepare is running'), claim.locked(tmp_path, shared):
                pass
    assert not list(tmp_path.iterdir())


def test_those_that_share_a_file_leave_it_to_the_next_one_that_does_not(tmp_path):
    path = tmp_path / 'lock'
    with file_lock.held(path, shared=True):
        with file_lock.held(path, shared=True) as is_locked:
            assert is_locked
        with pytest.raises(BlockingIOError), file_lock.held(path):
            pass
    with file_lock.held(path) as is_locked:
        assert is_locked
    assert not path.exists()


def test_the_file_of_a_killed_program_is_free(tmp_path):
    path = tmp_path / 'lock'
    process = subprocess.Popen([sys.executable, '-c', HOLD, path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'held\n'
        with pytest.raises(BlockingIOError), file_lock.held(path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert path.exists()
    with file_lock.held(path) as is_locked:
        assert is_locked
    assert not path.exists()


def test_a_file_that_its_holder_removes_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    path, removals = tmp_path / 'lock', [1]

    def late(descriptor, operation):
        if removals:
            removals.pop()
            path.unlink()
        _flock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', late)
    with file_lock.held(path), pytest.raises(BlockingIOError), file_lock.held(path):
        pass
    assert not removals and not path.exists()


@pytest.mark.parametrize('module, name, number', [(os, 'open', errno.EROFS), (fcntl, 'flock', errno.ENOLCK)])
def test_where_there_are_no_locks_that_is_told(tmp_path, monkeypatch, module, name, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module, name, refused)
        with file_lock.held(tmp_path / 'lock') as is_locked:
            assert not is_locked
    assert not list(tmp_path.iterdir())


def test_other_errors_are_raised(tmp_path, monkeypatch):
    def failed(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, 'flock', failed)
    with pytest.raises(OSError, match='Input/output error'), file_lock.held(tmp_path / 'lock'):
        pass
