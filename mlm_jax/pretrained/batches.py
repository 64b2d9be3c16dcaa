"""How many rows of unmasked or scored text go through a trained model at a time, and how they reach its devices."""

import jax
import numpy as np
from jax.sharding import Mesh

from mlm_jax.objectives.objective import Objective
from mlm_jax.parallel import mesh as mesh_lib

# In a batch, on each device: on a CPU as many as its caches hold, elsewhere enough to keep it busy.
CPU_TOKENS, ACCELERATOR_TOKENS = 2048, 32768
LARGEST_LOGITS = 1 << 26  # numbers in the logits of a batch: 256 MiB of float32


def num_shards(mesh: Mesh) -> int:
    """Over how many parts of the mesh the rows of a batch are split."""
    return mesh.shape[mesh_lib.DATA] * mesh.shape[mesh_lib.FSDP]


def batch_size(mesh: Mesh, length: int, num_rows: int, tokens_at_once: int = 0, most: int | None = None) -> int:
    """B, of which there are few for all numbers of rows: a program is compiled for each.

    Args:
      mesh: rows are split over it; B is a multiple of its parts.
      length: T.
      num_rows: that there are.
      tokens_at_once: on each device; 0 chooses by its kind.
      most: rows on each device.
    """
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    tokens_at_once = tokens_at_once or (CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS)
    needed = -(-num_rows // num_shards(mesh))
    rows = min(tokens_at_once // length, 1 << (needed - 1).bit_length())
    return max(1, rows if most is None else min(rows, most)) * num_shards(mesh)


def place(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """`array`, the same in each process, with its rows over the mesh."""
    return jax.make_array_from_callback(array.shape, mesh_lib.batch_sharding(mesh), lambda index: array[index])


def rows_at_once(objective: Objective, length: int, max_masked: int, vocab_size: int) -> int:
    """How many rows a batch may have, so that its logits stay below `LARGEST_LOGITS`."""
    return max(1, LARGEST_LOGITS // (objective.num_logits(length, max_masked) * vocab_size))
