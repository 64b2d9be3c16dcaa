"""Processes that do not find each other say so, with the usual causes, within the time that is given."""

import socket
import subprocess
import sys

import jax
import pytest

from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel import joining, peers

ALONE = """
import sys
from mlm_jax.parallel import joining
joining.join(sys.argv[1], 2, int(sys.argv[2]), timeout_seconds=1.0, heartbeat_timeout_seconds=100)
"""


def free_address() -> str:
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return f'localhost:{s.getsockname()[1]}'


def test_a_process_without_the_others_ends_in_time_and_says_whom_it_misses():
    """Real ones: a coordinator whose peer was not started, and a peer without a coordinator; JAX alone aborts."""
    said = {0: 'this is the coordinator', 1: 'nobody answers at localhost'}
    processes = {
        i: subprocess.Popen([sys.executable, '-c', ALONE, free_address(), str(i)], stderr=subprocess.PIPE, text=True)
        for i in said
    }
    for i, process in processes.items():
        _, output = process.communicate(timeout=30)
        assert process.returncode == peers.PEER_LOST_EXIT_CODE, output
        assert 'joining the other processes of the run, for at most 1 s' in output
        assert f'error: the processes of the run have not found each other within 1 s: {said[i]}' in output
        assert '--num_processes is not the number' in output and '--join_timeout_seconds' in output


def test_a_port_in_use_is_refused():
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as s:
        s.bind(('', 0))
        s.listen()
        address = f'localhost:{s.getsockname()[1]}'
        with pytest.raises(ConfigError, match=f'{address}: .*choose another port for all processes'):
            joining.join(address, 2, 0, 2.0, 100)


@pytest.mark.parametrize('address', ['localhost', 'localhost:99999'])
def test_an_address_without_a_port_is_refused(address):
    with pytest.raises(ConfigError, match=f'--coordinator_address={address}'):
        joining.join(address, 2, 0, 2.0, 100)


def test_what_jax_cannot_detect_is_asked_for(monkeypatch):
    def fail(*args, **options):
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', fail)
    with pytest.raises(ConfigError, match='should be defined. Outside of TPU pods, Slurm and GKE, give --coordinator'):
        joining.join(None, None, None, 2.0, 100)
