"""The processes of a run watch each other: one that is lost ends the others soon, with words.

Each process beats from a thread of its own, through the key-value store of the coordinator: compiling, or waiting for
a collective, stops no beat; death and SIGSTOP do. JAX itself would end the others too, but late, with an abort.
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

# sysexits' EX_UNAVAILABLE: schedulers can tell a lost process from a preemption and from a mistake.
PEER_LOST_EXIT_CODE = 69
_PREFIX = 'mlm_jax/peers'
_FINISHED = 'finished'


class Watch:
    """Beats for this process, and watches the beats of the others.

    Attributes:
      end: called with the message when a process is lost; does not return.
    """

    def __init__(
        self, client: Any, process: int, num_processes: int, timeout_seconds: float, end: Callable | None = None
    ):
        """Starts to beat and to watch.

        Args:
          client: the key-value store: `key_value_set(key, value, allow_overwrite)` and `key_value_dir_get(prefix)`.
          process: index of this one.
          num_processes: of the run.
          timeout_seconds: how long one may be silent.
          end: for tests; ends the process otherwise.
        """
        self._client, self._process, self._num_processes = client, process, num_processes
        self._timeout, self.end = timeout_seconds, end or self._end
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
        """Says that this process ends: as it should, or because of an error, which ends the others.

        After an error the others get the time to hear of it: when process 0 ends, its store is gone.
        """
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f'{_PREFIX}/end/{self._process}', message, True)
        self._stopped.set()
        if message != _FINISHED:
            time.sleep(3 * self._interval)

    def wait_for_verdict(self) -> None:
        """Waits as long as it takes to find a lost process, which ends this one: for errors that may come of that."""
        time.sleep(self._timeout + 3 * self._interval)

    def _beat(self) -> None:
        count, name = 0, f'{socket.gethostname()}, pid {os.getpid()}'
        while not self._stopped.is_set():
            # Errors of the store are those of a coordinator that is gone, which its silence will tell.
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
                self.end(value)
            elif kind == 'beat' and self._beats.get(peer) != value:
                self._beats[peer], self._names[peer] = value, f'process {peer} ({value.partition(" ")[2]})'
                self._heard[peer] = max(now, self._heard[peer])

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            if now - before > max(5.0, 5 * self._interval):  # this process itself was stopped: all get their time again
                self._reached = now
                self._heard = {peer: max(heard, now) for peer, heard in self._heard.items()}
            before = now
            if lost := self._lost(now):
                self.end(
                    f'{lost} has been silent for {self._timeout:g} s: killed, frozen, or cut off from the network. '
                    'See its own output; start the same command on all machines again, and it goes on from the last '
                    'checkpoint. --peer_timeout_seconds sets how long a process may be silent'
                )

    def _lost(self, now: float) -> str | None:
        if now - self._reached > self._timeout:
            return None if self._process == 0 else f'{self._names[0]}, which the others meet at,'
        silent = [peer for peer, heard in self._heard.items() if peer != self._process and now - heard > self._timeout]
        return ' and '.join(self._names[peer] for peer in silent) or None

    def _end(self, message: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if self._process == 0:  # which takes the store with it: the others hear it first
                self._client.key_value_set(f'{_PREFIX}/end/0', message, True)
                time.sleep(3 * self._interval)
        end_with(message, PEER_LOST_EXIT_CODE)


def end_with(message: str, status: int) -> None:
    """Ends the process at once: threads that wait for a lost process cannot be ended otherwise."""
    os.write(2, f'\nerror: {message}\n'.encode())
    os._exit(status)


@contextlib.contextmanager
def watched(timeout_seconds: float) -> Iterator[None]:
    """Watches the other processes of the run, if there are any, while the body runs."""
    from jax._src import distributed  # its store has no public name; jax.experimental.multihost_utils uses it likewise

    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        yield
        return
    explain_abort(state.coordinator_address, state.process_id)
    watch = Watch(state.client, state.process_id, state.num_processes, timeout_seconds)
    try:
        yield
    except SystemExit:
        watch.finish()  # all processes stop together at a preemption
        raise
    except jax.errors.JaxRuntimeError:
        watch.wait_for_verdict()
        watch.finish(f'process {state.process_id} ended with an error; see its own output')
        atexit.register(_leave, 1)
        raise
    except BaseException as error:
        words = str(error).partition('\n')[0] or type(error).__name__
        watch.finish(f'process {state.process_id} ended: {words}')
        atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
        raise
    watch.finish()


_kept = []  # what C holds must live


def _leave(status: int) -> None:
    """Ends the process before JAX waits for the others, which have ended: it would abort after minutes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def explain_abort(coordinator: str, process: int) -> None:
    """Says what it means when JAX aborts because the connection to process 0 has broken; it leaves no other way to.

    Args:
      coordinator: HOST:PORT.
      process: index of this process.
    """
    if process == 0:
        return
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)

    def handle(number: int) -> None:
        if not _answers(coordinator):
            end_with(
                f'process 0, which the others meet at ({coordinator}), is gone. See its own output; start the same '
                'command on all machines again, and it goes on from the last checkpoint',
                PEER_LOST_EXIT_CODE,
            )
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)

    _kept.append(handler_type(handle))
    c_library = ctypes.CDLL(None)
    c_library.signal.argtypes, c_library.signal.restype = (ctypes.c_int, handler_type), ctypes.c_void_p
    c_library.signal(signal.SIGABRT, _kept[-1])


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host.strip('[]'), int(port)), timeout=2):
            return True
    except OSError:
        return False
