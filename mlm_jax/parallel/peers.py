"""The processes of a run watch each other: if one is lost, the others end soon, with an error message.

Each process sends heartbeats from a separate thread, through the key-value store of the coordinator. Compiling, or
waiting for a collective, does not stop the heartbeat; the death of the process, or SIGSTOP, does. JAX itself would end
the other processes, too, but late, and by an abort.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# EX_UNAVAILABLE of sysexits.h, so that schedulers can tell a lost process from a preemption and from other errors.
PEER_LOST_EXIT_CODE = 69
_PREFIX = 'mlm_jax/peers'
_FINISHED = 'finished'
# What ends one process with an error often ends all of them, of which process 0 may have the most to write before.
_SECONDS_TO_END_ALIKE = 30.0


class Watch:
    """Sends the heartbeat of this process, and watches the heartbeats of the others.

    Attributes:
      end: called with an error message when a process is lost; it does not return.
    """

    def __init__(
        self,
        client: Any,
        process: int,
        num_processes: int,
        timeout_seconds: float,
        end: Callable[[str], None] | None = None,
        patience_seconds: float = _SECONDS_TO_END_ALIKE,
    ):
        """Starts the threads that send and watch heartbeats.

        Args:
          client: the key-value store, with `key_value_set(key, value, allow_overwrite)` and
            `key_value_dir_get(prefix)`.
          process: the index of this process.
          num_processes: the number of processes of the run.
          timeout_seconds: how long a process may be silent before it counts as lost.
          end: see the attribute; None ends this process with `PEER_LOST_EXIT_CODE`.
          patience_seconds: how long after an error of another process this one may still end by itself.
        """
        self._client, self._process, self._num_processes = client, process, num_processes
        self._timeout, self.end = timeout_seconds, end or self._end
        self._patience = patience_seconds
        self._error_of_peer, self._told_at = '', 0.0  # the first that was announced, and when
        self._interval = min(1.0, timeout_seconds / 10)
        self._stopped = threading.Event()
        self._names = {i: f'process {i}' for i in range(num_processes)}
        self._beats: dict[int, str] = {}
        self._heard = dict.fromkeys(range(num_processes), time.monotonic())
        self._reached = time.monotonic()  # when the store last answered
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._beat, self._judge)]
        for thread in self._threads:
            thread.start()

    def finish(self, message: str = _FINISHED) -> None:
        """Announces that this process ends; a `message` other than the default is an error, which ends the others soon.

        After an error, this waits until the others have read the message: when process 0 ends, the store is gone.
        """
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f'{_PREFIX}/end/{self._process}', message, True)
        self._stopped.set()
        if message != _FINISHED:
            time.sleep(3 * self._interval)

    def wait_for_verdict(self) -> None:
        """Waits until a lost process would be found, and end this one: it may be the cause of an error.

        If another process has announced an error, that ends this one now.
        """
        self._patience = 0.0
        time.sleep(self._timeout + 3 * self._interval)

    def _beat(self) -> None:
        count, name = 0, f'{socket.gethostname()}, pid {os.getpid()}'
        while not self._stopped.is_set():
            # The store fails if the coordinator is gone; `_judge` notices its silence.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f'{_PREFIX}/beat/{self._process}', f'{count} {name}', True)
                self._take(dict(self._client.key_value_dir_get(_PREFIX)))
            count += 1
            self._stopped.wait(self._interval)

    def _take(self, entries: dict[str, str]) -> None:
        now = time.monotonic()
        self._reached = now
        for key, value in entries.items():
            kind, _, index = key.removeprefix(f'{_PREFIX}/').partition('/')
            peer = int(index)
            if kind == 'end' and value == _FINISHED:
                self._heard[peer] = float('inf')
            elif kind == 'end' and peer != self._process:
                self._heard[peer] = float('inf')
                if not self._error_of_peer:
                    self._told_at, self._error_of_peer = now, value
            elif kind == 'beat' and self._beats.get(peer) != value:
                self._beats[peer], self._names[peer] = value, f'process {peer} ({value.partition(" ")[2]})'
                self._heard[peer] = max(now, self._heard[peer])

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            if now - before > max(5.0, 5 * self._interval):  # this process itself was stopped: all timeouts start again
                self._reached = now
                self._heard = {peer: max(heard, now) for peer, heard in self._heard.items()}
            before = now
            if self._error_of_peer and now - self._told_at >= self._patience:
                self.end(self._error_of_peer)
                return
            if lost := self._lost(now):
                self.end(
                    f'{lost} has been silent for {self._timeout:g} s: it was killed, is frozen, or has lost its '
                    'network connection. See its output; then start the same command on all machines again: it '
                    'resumes from the last checkpoint. --peer_timeout_seconds sets how long a process may be silent'
                )

    def _lost(self, now: float) -> str | None:
        if now - self._reached > self._timeout:
            return None if self._process == 0 else f'{self._names[0]}, the coordinator,'
        # Of what peers do since the last answer of the store, this process knows nothing.
        silence = {peer: self._reached - heard for peer, heard in self._heard.items() if peer != self._process}
        silent = [peer for peer, seconds in silence.items() if seconds > self._timeout]
        return ' and '.join(self._names[peer] for peer in silent) or None

    def _end(self, message: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if self._process == 0:  # the store ends with process 0, so the others must read the message first
                self._client.key_value_set(f'{_PREFIX}/end/0', message, True)
                time.sleep(3 * self._interval)
        end_with(message, PEER_LOST_EXIT_CODE)


def end_with(message: str, status: int) -> None:
    """Prints an error and ends the process at once; threads that wait for a lost process cannot be ended otherwise."""
    os.write(2, f'\nerror: {message}\n'.encode())
    os._exit(status)


def distributed_state() -> Any:
    """What JAX knows of the processes of the run: coordinator, number of processes, index of this one, client."""
    from jax._src import distributed  # no public name; jax.experimental.multihost_utils uses it, too

    return distributed.global_state


@contextlib.contextmanager
def watched(timeout_seconds: float) -> Iterator[None]:
    """Watches the other processes of the run, if there are any, while the body runs."""
    state = distributed_state()
    coordinator = state.coordinator_address
    if state.client is None or coordinator is None or state.num_processes == 1:
        yield
        return
    explain_abort(coordinator, state.process_id)
    watch = Watch(state.client, state.process_id, state.num_processes, timeout_seconds)
    try:
        yield
    except SystemExit:
        watch.finish()  # all processes stop together at a preemption
        raise
    except jax.errors.JaxRuntimeError:
        watch.wait_for_verdict()
        watch.finish(f'process {state.process_id} ended with an error; see its output')
        atexit.register(_leave, 1)
        raise
    except BaseException as error:
        words = str(error).partition('\n')[0] or type(error).__name__
        watch.finish(f'process {state.process_id} ended: {words}')
        atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
        raise
    watch.finish()


_kept: list[Any] = []  # callbacks that C code holds must not be garbage-collected


def _leave(status: int) -> None:
    """Ends the process before JAX waits for the others. They have ended, and JAX would abort after minutes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def explain_abort(coordinator: str, process: int) -> None:
    """Prints an error when JAX aborts because the connection to process 0 is lost. A signal handler is the only way.

    Args:
      coordinator: the address of process 0, HOST:PORT.
      process: the index of this process.
    """
    if process == 0:
        return
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)

    def handle(number: int) -> None:
        if not answers(coordinator):
            end_with(
                f'process 0, the coordinator ({coordinator}), is gone. See its output; then start the same command on '
                'all machines again: it resumes from the last checkpoint',
                PEER_LOST_EXIT_CODE,
            )
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)

    _kept.append(handler_type(handle))
    c_library = ctypes.CDLL(None)
    c_library.signal.argtypes, c_library.signal.restype = (ctypes.c_int, handler_type), ctypes.c_void_p
    c_library.signal(signal.SIGABRT, _kept[-1])


def answers(address: str) -> bool:
    """Whether somebody accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host.strip('[]'), int(port)), timeout=2):
            return True
    except OSError:
        return False
