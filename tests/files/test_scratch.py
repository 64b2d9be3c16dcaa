"""Scratch directories go when their process ends, or when the next one begins; never while it lives."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from mlm_jax.files import scratch

ROOT = pathlib.Path(scratch.__file__).parents[2]


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    return tmp_path


def test_a_lock_that_another_process_deletes_before_it_is_locked_is_made_anew(temporary, monkeypatch):
    made, mkstemp = [], tempfile.mkstemp

    def deleted_once(*args):
        descriptor, lock = mkstemp(*args)
        made.append(lock)
        if len(made) == 1:
            os.unlink(lock)
        return descriptor, lock

    monkeypatch.setattr(tempfile, 'mkstemp', deleted_once)
    with scratch.directory() as ours:
        assert len(made) == 2 and {path.name for path in temporary.iterdir()} == {ours.name, f'{ours.name}.lock'}
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_deleted_and_nothing_else(temporary):
    (temporary / 'mlm_jax_test_cache_0').mkdir()
    (temporary / 'mlm_jax_other').mkdir()
    code = 'import os; from mlm_jax.files import scratch; (scratch.new() / "a").touch(); os._exit(0)'  # as a kill does
    subprocess.run([sys.executable, '-c', code], check=True, env={**os.environ, 'TMPDIR': str(temporary)}, cwd=ROOT)
    left = {path.name for path in temporary.iterdir()} - {'mlm_jax_test_cache_0', 'mlm_jax_other'}
    assert len(left) == 2
    ours = scratch.new()
    second = scratch.new()
    there = {path.name for path in temporary.iterdir() if not path.name.endswith('.lock')}
    assert there == {'mlm_jax_test_cache_0', 'mlm_jax_other', ours.name, second.name}
    scratch.remove(second)
    with scratch.directory() as third:
        assert ours.is_dir() and third.is_dir() and not second.exists()
    scratch.remove(ours)
    scratch.remove(ours)
    assert {path.name for path in temporary.iterdir()} == {'mlm_jax_test_cache_0', 'mlm_jax_other'}
