"""A run that is killed at any moment, and whose files are damaged while it lies there, ends as the uninterrupted one.

    pytest tests/test_kills.py --kills=100 --kill_seed=1 -s

takes half an hour on one core; the suite takes a few kills. Each start is killed with SIGKILL: after a random time
(imports, compilation, the loop), at a random step, or while a checkpoint or another file is being written. Before the
next start, something in the workdir is damaged. Whatever the program refuses, it has to refuse in one line.
"""

import collections
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest

from mlm_jax import config as config_lib
from tests.test_train import assert_same_bits, command, environment, final_state, learned

KILLS_OF_A_RUN = 12


@pytest.fixture(scope='module')
def config(prepared):
    config = config_lib.default_config()
    overrides = {
        'vocab_size': '64', 'sequence_length': '32', 'batch_size': '16', 'total_steps': '160',
        'data.directory': str(prepared), 'model.num_layers': '1', 'model.width': '32', 'model.num_heads': '2',
        'model.ffn_width': '64', 'evaluation.rows': '24', 'evaluation.every_steps': '80',
        'checkpoint.every_steps': '40', 'logging.every_steps': '3',
        'compilation_cache': os.environ['JAX_COMPILATION_CACHE_DIR'],
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    return config


def test_killed_and_damaged_equals_uninterrupted_bit_for_bit(config, tmp_path, request):
    num_kills, rng = request.config.getoption('--kills'), np.random.default_rng(request.config.getoption('--kill_seed'))
    expected = tmp_path / 'uninterrupted'
    durations = measure(config, expected)
    kills, damaged = 0, collections.Counter()
    while kills < num_kills:
        workdir, goal = tmp_path / f'killed_from_{kills}', min(kills + KILLS_OF_A_RUN, num_kills)
        while kills < goal:
            moment = rng.choice(MOMENTS)
            if not run(config, workdir, until=moment(workdir, rng, durations)):
                break  # it came to its end before that moment
            kills += 1
            done = damage(workdir, rng)
            damaged[done] += 1
            print(f'kill {kills}/{num_kills} {moment.__name__}, {steps_of(workdir)}; then {done}', flush=True)
        run(config, workdir)
        assert learned(workdir) == learned(expected)
        assert_same_bits(final_state(config, workdir), final_state(config, expected))
        shutil.rmtree(workdir)
    print(dict(damaged), flush=True)


class Durations(NamedTuple):
    """How long the uninterrupted run took, in seconds: until it had compiled, and from there to its end."""

    start: float
    loop: float


def measure(config, workdir: pathlib.Path) -> Durations:
    """Runs the program to its end; every later start finds its compiled programs in the cache."""
    began, compiled_at = time.monotonic(), []

    def compiled() -> Iterator[bool]:
        while 'compiled in' not in workdir.with_suffix('.output').read_text():
            yield False
        compiled_at.append(time.monotonic())
        while True:
            yield False

    run(config, workdir, until=compiled())
    compiling = float(re.search(r'compiled in ([\d.]+) s', workdir.with_suffix('.output').read_text())[1])
    return Durations(start=compiled_at[0] - began - compiling, loop=time.monotonic() - compiled_at[0])


def run(config, workdir: pathlib.Path, until: Iterator[bool] | None = None) -> bool:
    """Starts the program and kills it when `until` yields True; whether it came to that, or to the end of the run."""
    output = workdir.with_suffix('.output')
    with output.open('w') as file:
        process = subprocess.Popen(
            command(config, workdir), env=environment(1), cwd=workdir.parent, stdout=file, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 240
    while process.poll() is None and not (until and next(until)):
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.002)
    if killed := process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed or process.returncode == 0, output.read_text()
    assert 'Traceback' not in output.read_text(), output.read_text()
    return killed


# ---- When it is killed -----------------------------------------------------------------------------------------------


def at_any_time(workdir: pathlib.Path, rng: np.random.Generator, durations: Durations) -> Iterator[bool]:
    """While it imports, restores, compiles or trains."""
    end = time.monotonic() + rng.uniform(0, durations.start + durations.loop)
    while True:
        yield time.monotonic() > end


def in_the_loop(workdir: pathlib.Path, rng: np.random.Generator, durations: Durations) -> Iterator[bool]:
    """Some time after it has compiled."""
    output, delay = workdir.with_suffix('.output'), rng.uniform(0, durations.loop / 2)
    while 'compiled in' not in output.read_text():
        yield False
    end = time.monotonic() + delay
    while True:
        yield time.monotonic() > end


def in_a_write(workdir: pathlib.Path, rng: np.random.Generator, durations: Durations) -> Iterator[bool]:
    """While a checkpoint, or another file, is written under its temporary name."""
    folder = rng.choice([workdir, workdir / 'checkpoints'])
    seen, left = {path.name for path in entries(folder)}, rng.integers(1, 8)
    while True:
        new = {path.name for path in entries(folder) if 'tmp' in path.name} - seen
        seen |= new
        left -= len(new)
        yield left <= 0


MOMENTS = (at_any_time, in_the_loop, in_a_write)


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def steps_of(workdir: pathlib.Path) -> str:
    return 'checkpoints ' + ', '.join(sorted(path.name for path in entries(workdir / 'checkpoints')))


# ---- What is damaged before it starts again --------------------------------------------------------------------------


def damage(workdir: pathlib.Path, rng: np.random.Generator) -> str:
    """Damages something, as disks and people do; what it was, or 'nothing' where there is nothing yet to be damaged."""
    names = rng.permutation(list(DAMAGES)).tolist()
    return next((name for name in names if DAMAGES[name](workdir, rng)), 'nothing')


def newest_checkpoint(workdir: pathlib.Path) -> pathlib.Path | None:
    """Of two at least: without an older one, a damaged checkpoint is rightly the end of a run."""
    whole = sorted((p for p in entries(workdir / 'checkpoints') if p.name.isdigit()), key=lambda p: int(p.name))
    return whole[-1] if len(whole) > 1 else None


def file_of_a_checkpoint(workdir: pathlib.Path, rng: np.random.Generator) -> pathlib.Path | None:
    """One that holds arrays or the position, of the newest."""
    newest = newest_checkpoint(workdir)
    files = sorted(p for p in newest.rglob('*') if p.is_file() and p.stat().st_size > 32) if newest else []
    return files[rng.integers(len(files))] if files else None


def cut_checkpoint(workdir, rng) -> bool:
    if file := file_of_a_checkpoint(workdir, rng):
        os.truncate(file, int(rng.integers(file.stat().st_size)))
    return bool(file)


def flip_checkpoint(workdir, rng) -> bool:
    if file := file_of_a_checkpoint(workdir, rng):
        flip_byte(file, rng)
    return bool(file)


def flip_byte(file: pathlib.Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def lose_checkpoint_file(workdir, rng) -> bool:
    if file := file_of_a_checkpoint(workdir, rng):
        file.unlink()
    return bool(file)


def empty_checkpoint(workdir, rng) -> bool:
    if newest := newest_checkpoint(workdir):
        shutil.rmtree(newest)
        newest.mkdir()
    return bool(newest)


def insert_bad_line(workdir, rng) -> bool:
    """A blank line or one of NULs, as a file system leaves them behind after a loss of power."""
    return change(workdir / 'metrics.jsonl', lambda old: insert(old, rng, [b'\n', b'\0' * 40 + b'\n'][rng.integers(2)]))


def insert(old: bytes, rng: np.random.Generator, line: bytes) -> bytes:
    lines = old.splitlines(keepends=True)
    place = int(rng.integers(len(lines) + 1))
    return b''.join([*lines[:place], line, *lines[place:]])


def cut_configuration(workdir, rng) -> bool:
    return change(workdir / 'config.json', lambda old: old[: int(rng.integers(len(old)))])


def cut_environment(workdir, rng) -> bool:
    return change(workdir / 'environment.json', lambda old: old[: int(rng.integers(len(old)))])


def change(file: pathlib.Path, function: Callable[[bytes], bytes]) -> bool:
    if there := file.is_file() and file.stat().st_size > 0:
        file.write_bytes(function(file.read_bytes()))
    return there


def leave_temporary_files(workdir, rng) -> bool:
    if not (workdir / 'checkpoints').is_dir():
        return False
    (workdir / 'metrics.jsonl.7.tmp').write_bytes(b'{"step"')
    (workdir / 'checkpoints' / f'{rng.integers(1, 240)}.orbax-checkpoint-tmp').mkdir(exist_ok=True)
    return True


DAMAGES = {
    function.__name__: function
    for function in (
        cut_checkpoint, flip_checkpoint, lose_checkpoint_file, empty_checkpoint, insert_bad_line, cut_configuration,
        cut_environment, leave_temporary_files,
    )
}  # fmt: skip
