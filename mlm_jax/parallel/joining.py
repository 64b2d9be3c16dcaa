"""The processes of a run find each other, or end with an error message that names the usual causes.

JAX itself aborts when its own timeout is over, with a stack of C++ functions and no cause.
"""

import socket
import sys
import threading
import time

import jax

from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel import peers

_LATER_SECONDS = 60  # by which JAX's own timeout comes after that of this file


def join(
    coordinator: str | None,
    num_processes: int | None,
    process: int | None,
    timeout_seconds: float,
    heartbeat_timeout_seconds: int,
) -> None:
    """Joins the other processes of the run, and prints coordinator, processes and devices; precedes any use of these.

    Args:
      coordinator: HOST:PORT of process 0; None, here and below, means that JAX detects the cluster.
      num_processes: the number of processes.
      process: the index of this process.
      timeout_seconds: how long to wait for the others. Then this process ends with `peers.PEER_LOST_EXIT_CODE`.
      heartbeat_timeout_seconds: after which JAX takes a silent process for lost, once all have joined.

    Raises:
      ConfigError: if JAX cannot detect what is None, or the port of the coordinator is in use.
    """
    if coordinator and process == 0:
        _check_port(coordinator)
    _print(f'joining the other processes of the run, for at most {timeout_seconds:g} s')
    start, joined = time.monotonic(), threading.Event()

    def end_when_late() -> None:
        if not joined.wait(timeout_seconds):
            peers.end_with(_why_late(timeout_seconds), peers.PEER_LOST_EXIT_CODE)

    threading.Thread(target=end_when_late, daemon=True).start()
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process,
            initialization_timeout=int(timeout_seconds) + _LATER_SECONDS,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )  # fmt: skip
        devices = f'{jax.local_device_count()} of {jax.device_count()} devices'
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f'this process cannot join a run of several processes: {str(error).rstrip(".")}. Outside of TPU pods, '
            'Slurm and GKE, give --coordinator_address=HOST:PORT, where the port is free on the machine of process 0, '
            '--num_processes and --process_id'
        ) from error
    finally:
        joined.set()
    _print(f'joined in {time.monotonic() - start:.1f} s: {_place()}, {devices} are here')


def _check_port(coordinator: str) -> None:
    """Raises ConfigError if the port is in use on this machine: JAX would end with a segmentation fault."""
    port = coordinator.rpartition(':')[2]
    if not port.isdigit():
        raise ConfigError(f'--coordinator_address={coordinator} must be HOST:PORT')
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a finished run has just left is free
        try:
            probe.bind(('', int(port)))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f'process 0 cannot listen at the port of --coordinator_address={coordinator}: {error}. End the run '
                'that uses the port, or choose another port for all processes'
            ) from None


def _place() -> str:
    state = peers.distributed_state()
    return f'process {state.process_id} of {state.num_processes}, coordinator {state.coordinator_address}'


def _why_late(timeout_seconds: float) -> str:
    state = peers.distributed_state()
    if state.coordinator_address is None:
        found = 'the cluster was not detected'
    elif state.process_id == 0:
        found = f'this is the coordinator ({state.coordinator_address}), and not all other processes have reached it'
    elif peers.answers(state.coordinator_address):
        found = f'the coordinator ({state.coordinator_address}) answers, so others have probably not reached it'
    else:
        found = f'nobody answers at {state.coordinator_address}, the address of process 0, the coordinator'
    return (
        f'the processes of the run have not found each other within {timeout_seconds:g} s: {found}. Usual causes: a '
        'process was not started, or has ended with an error (see its output); --num_processes is not the number of '
        'processes that were started, or two have the same --process_id; --coordinator_address names another machine, '
        'or a firewall blocks its port. Then start the same command on all machines again. --join_timeout_seconds sets '
        'how long a process waits'
    )


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
