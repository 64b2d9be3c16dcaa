"""Runs programs of launch/ where there is no cloud, and reads what was noted."""

import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def launch(root, *arguments, code=0):
    """Runs a program of `root`, checks its exit status and returns its output, or its errors if it fails."""
    command = [str(root / 'launch' / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)
