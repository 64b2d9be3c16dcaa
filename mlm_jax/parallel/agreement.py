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
