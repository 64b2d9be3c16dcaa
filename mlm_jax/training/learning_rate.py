"""Learning-rate schedules: the factor of the peak learning rate as a function of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def make_schedule(name: str, total_steps: int, warmup_steps: int, decay_steps: int) -> Callable:
    """The factor, 0 … 1, that multiplies the peak learning rate at update 0, 1, 2, ….

    During the warm-up, the factor rises linearly and reaches 1 at the last update of the warm-up. Then:
      linear: it decays linearly to 0 at `total_steps`.
      cosine: it decays to 0 at `total_steps` along half a cosine.
      wsd: it is constant, and decays as 1 − √progress over the last `decay_steps` (arXiv 2405.18392).
      constant: it is constant.

    Returns:
      A function of the number of an update: of an array, traced or not, in JAX; of an int, in NumPy on the host, where
      it does not wait for what runs on devices.
    """

    def factor(step: jax.Array | int) -> jax.Array | np.ndarray:
        xp = np if isinstance(step, int) else jnp
        step = xp.asarray(step, xp.float32)
        warmup = xp.minimum(1.0, (step + 1) / max(1, warmup_steps))
        if name == 'constant':
            return warmup
        start = total_steps - decay_steps if name == 'wsd' else warmup_steps
        progress = xp.clip((step - start) / max(1, total_steps - start), 0.0, 1.0)
        decayed = {
            'linear': lambda: 1 - progress,
            'cosine': lambda: 0.5 * (1 + xp.cos(xp.pi * progress)),
            'wsd': lambda: 1 - xp.sqrt(progress),
        }[name]()
        return warmup * decayed

    return factor
