"""What the processes of a run agree on before its first step: one workdir, and a signal that came too early."""

import os
import re
import socket
import subprocess
import sys

# The arguments: the coordinator, the number of processes, the index of this one, a directory, whether it is signaled.
PROGRAM = """
import os, pathlib, signal, sys, time
import jax
from mlm_jax.files.errors import ConfigError
from mlm_jax.training import runtime, workdir

address, count, index, directory, is_signaled = sys.argv[1:]
jax.distributed.initialize(address, int(count), int(index))
jax.devices()
if is_signaled == 'True':
    os.kill(os.getpid(), signal.SIGTERM)
began = time.monotonic()
shared = pathlib.Path(directory)
with workdir.held(shared):
    print('held')
workdir._SECONDS_TO_APPEAR = 0.5
try:
    with workdir.held(shared / index):
        print('held')
except ConfigError as error:
    print('refused:', str(error).replace(directory, 'runs').replace(f'runs/{index}', 'runs/N'))
time.sleep(max(0.0, 2.5 - (time.monotonic() - began)))  # JAX looks for a signal each second
preemption = runtime.Preemption(5000)
print(preemption.reached(5000), flush=True)
os._exit(0)
"""


def start(count, directory, signaled):
    with socket.socket() as s:
        s.bind(('localhost', 0))
        address = f'localhost:{s.getsockname()[1]}'
    flags = re.sub(r'device_count=\d+', 'device_count=1', os.environ['XLA_FLAGS'])
    return [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, address, str(count), str(i), str(directory), str(i == signaled)],
            env={**os.environ, 'XLA_FLAGS': flags}, stdout=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip


def test_one_workdir_and_early_signals(tmp_path):
    runs = [start(2, tmp_path / 'two', signaled=1), start(1, tmp_path / 'one', signaled=0)]
    runs.append(start(1, tmp_path / 'calm', signaled=None))
    both, (alone,), (calm,) = ([process.communicate(timeout=120)[0].splitlines() for process in run] for run in runs)
    for output in both:
        assert output[-3:-1] == [
            'held',
            'refused: runs/N is not the same directory for all processes: what process 0 writes there, process 1 '
            'cannot read. Give a directory on a disk that all machines share, or in a bucket, such as gs://BUCKET/PATH',
        ]
    assert sorted(path.name for path in (tmp_path / 'two').iterdir()) == ['.lock', '0'], 'nothing else is left'
    assert [output[-1] for output in (*both, alone, calm)] == ['True', 'True', 'True', 'False']
