"""What one process does on behalf of all: each of two real processes gets the same, and the same error."""

import os
import re
import socket
import subprocess
import sys

PROGRAM = """
import sys
import jax
from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel import agreement

address, index = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))


def step():
    assert jax.process_index() == 0
    return 'runs/größer@7' * 300


def fail():
    raise ConfigError('no such run')


print(agreement.from_leader(step))
print([agreement.from_leader(lambda: '')])
try:
    agreement.from_leader(fail)
except ConfigError as error:
    print('refused:', error)
"""


def test_all_processes_are_told_what_the_first_one_found():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        address = f'localhost:{s.getsockname()[1]}'
    flags = re.sub(r'device_count=\d+', 'device_count=1', os.environ['XLA_FLAGS'])
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, address, str(index)],
            env={**os.environ, 'XLA_FLAGS': flags}, stdout=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0].splitlines()[-3:] for process in processes]  # behind words of Gloo
    assert outputs[0] == outputs[1] == ['runs/größer@7' * 300, "['']", 'refused: no such run']
