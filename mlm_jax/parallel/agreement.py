"""Actions that one process takes on behalf of all processes of a run."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlm_jax.files.errors import ConfigError

_MESSAGE_BYTES = 2000


def of_leader(action: Callable[[], None]) -> None:
    """Runs `action` on process 0 while the others wait.

    Raises:
      ConfigError, OSError: on process 0, the error that `action` raised.
      ConfigError: on the other processes, with the same message.
    """
    if jax.process_count() == 1:
        action()
        return
    error: ConfigError | OSError | None = None
    if jax.process_index() == 0:
        try:
            action()
        except (ConfigError, OSError) as raised:
            error = raised
    message = np.frombuffer(str(error or '').encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b'\0'), np.uint8)
    told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(message))).rstrip(b'\0').decode(errors='replace')
    if error:
        raise error
    if told:
        raise ConfigError(told)


def from_leader(value: Callable[[], str]) -> str:
    """What `value` returns on process 0, on all processes; raises errors as `of_leader` does."""
    found = ['']

    def find() -> None:
        found[0] = value()

    of_leader(find)
    if jax.process_count() == 1:
        return found[0]
    text = np.frombuffer(found[0].encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    told = multihost_utils.broadcast_one_to_all(text if jax.process_index() == 0 else np.zeros(size, np.uint8))
    return bytes(np.asarray(told)).decode()


def where_false(mine: bool) -> list[int]:
    """The indices of the processes that call this with False, on all processes, each of which must call it."""
    return np.flatnonzero(~np.ravel(multihost_utils.process_allgather(np.asarray(mine)))).tolist()
