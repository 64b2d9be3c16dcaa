"""A directory in a bucket has one writer: who renews its lease is left alone, who does not is succeeded."""

import json
import threading
import time

import pytest

from mlm_jax.config import ConfigError
from mlm_jax.files import buckets, directory_lock, lease


@pytest.fixture
def quick(monkeypatch):
    """Leases that live a hundredth as long."""
    for name in ('BEAT_SECONDS', 'PATIENCE_SECONDS', '_SETTLE_SECONDS', '_LOOK_SECONDS'):
        monkeypatch.setattr(lease, name, getattr(lease, name) / 100)


@pytest.fixture
def run(bucket):
    return bucket[0] / 'run'


def test_a_second_program_is_refused_while_the_first_lives(run, quick):
    with directory_lock.sole_writer(run):
        begun = json.loads((run / directory_lock.LOCK_FILE).read_bytes())
        said = rf'gs://bucket/run is in use by process {begun["pid"]} on '
        with pytest.raises(ConfigError, match=said), directory_lock.sole_writer(run):
            pass
    assert not (run / directory_lock.LOCK_FILE).exists()
    with directory_lock.sole_writer(run):
        pass


@pytest.mark.parametrize('left', [b'{"pid": 7, "host": "a", "token": "x"}', b'{"pid"', b''])
def test_what_a_killed_program_left_expires(run, quick, left, capsys):
    (run / directory_lock.LOCK_FILE).write_bytes(left)
    with directory_lock.sole_writer(run):
        assert json.loads((run / directory_lock.LOCK_FILE).read_bytes())['token'] != 'x'
    assert 'waiting' in capsys.readouterr().err


def test_a_lease_that_is_given_back_meanwhile_is_taken_at_once(run, quick):
    (run / directory_lock.LOCK_FILE).write_bytes(b'{}')
    threading.Timer(0.05, (run / directory_lock.LOCK_FILE).unlink).start()
    start = time.monotonic()
    with directory_lock.sole_writer(run):
        assert time.monotonic() - start < lease.PATIENCE_SECONDS


def test_of_several_that_succeed_at_once_one_goes_on(run, quick, monkeypatch):
    (run / directory_lock.LOCK_FILE).write_bytes(b'{}')
    monkeypatch.setattr(lease, '_end', lambda path: None)
    inside, refused, gate = [], [], threading.Barrier(4)

    def compete():
        gate.wait()
        try:
            with directory_lock.sole_writer(run):
                inside.append(threading.get_ident())
                time.sleep(0.3)
        except ConfigError:
            refused.append(threading.get_ident())

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 3)


def test_a_program_whose_lease_was_taken_over_ends(run, quick, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(lease, '_end', lambda path: ended.set())
    with directory_lock.sole_writer(run):
        (run / directory_lock.LOCK_FILE).write_bytes(b'{"token": "of another"}')
        assert ended.wait(2)
    assert (run / directory_lock.LOCK_FILE).read_bytes() == b'{"token": "of another"}', 'it is left alone'


def test_a_bucket_that_cannot_be_written_to_is_said_at_once(run, quick, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, 'denied', str(run))

    monkeypatch.setattr(buckets.BucketPath, 'create', refuse)
    with pytest.raises(PermissionError), directory_lock.sole_writer(run):
        pass
