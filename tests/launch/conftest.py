"""Stand-ins for clouds: small programs in front of the PATH that write down how they were called.

So the real scripts of launch/ run, with their real quoting and order of commands, where there is no Slurm, no
Kubernetes and no TPU.
"""

import os
import shlex
import shutil
import sys

import pytest
from stand_ins import ROOT


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the programs need of the repository."""
    root = tmp_path / 'home' / 'checkout'
    shutil.copytree(ROOT / 'launch', root / 'launch')
    shutil.copy(ROOT / 'setup.py', root)
    (root / 'mlm_jax' / 'data').mkdir(parents=True)
    (root / 'mlm_jax' / 'data' / 'rows.py').touch()
    return root


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that puts a program in front of the PATH; it notes its call in `calls` and runs `body`."""
    (tmp_path / 'bin').mkdir()
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    for name in ('VENV', 'PYTHON'):
        monkeypatch.delenv(name, raising=False)

    def make(name, body='', path=None):
        path = path or tmp_path / 'bin' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        note = f'echo "{name} $*" >>{shlex.quote(str(tmp_path / "calls"))}'
        path.write_text(f'#!/bin/bash\n{note}\n{body}\n')
        path.chmod(0o755)

    return make


@pytest.fixture
def environment(tmp_path, stand_in):
    """A function that makes a virtual environment which notes the modules that it should run, no more."""

    def make(directory):
        notes = shlex.quote(str(tmp_path / 'modules'))
        stand_in(
            'python',
            f'if [[ $1 == -m ]]; then echo "$*" >>{notes}; else exec {shlex.quote(sys.executable)} "$@"; fi',
            directory / 'bin' / 'python',
        )
        return directory

    return make
