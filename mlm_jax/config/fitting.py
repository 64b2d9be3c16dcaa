"""What a configuration is fitted to by `slice=v5e-16`: to run well on a TPU slice.

The choices come from compiling BERT-base and -large, of each objective, for slices that were not there (`bench
--topology`; RESULTS.md has the figures), and from published peaks; no TPU has run them. A key that the user has set
stays as it is, and the others follow.
"""

import math

import ml_collections

from mlm_jax.config import flops
from mlm_jax.files.errors import ConfigError
from mlm_jax.objectives import costs
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.parallel import slices
from mlm_jax.parallel.layout import mesh_shape

FSDP = 16  # devices over which the state is split; more would make its parts thin, and gathering them slow
# The memory of a step, bytes, about what compiled: for each token, layer and unit of width in two bytes a number; for
# each pair of tokens, layer and head, where attention keeps its probabilities; for each logit; for each parameter with
# its gradient and its optimizer state; and a constant.
BYTES_OF_UNIT, BYTES_OF_PAIR, BYTES_OF_LOGIT, BYTES_OF_PARAMETER = 50, 4, 8, 16
FIXED_BYTES = 1.5 * 2**30
USABLE = 0.85  # of a device's memory


def fit_layout(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Decides, in place, where these are open: attention, the mesh, and how the state lies on it.

    Args:
      config: with `slice` set.
      num_devices: of the slice.

    Raises:
      ConfigError: when `mesh.tensor` does not fit the devices.
    """
    m, mesh = config.model, config.mesh
    _choose(config, 'accelerator', 'tpu', open_value='auto')
    _choose(m, 'attention_backend', 'xla' if m.relative_buckets or m.attention_dropout else 'splash', open_value='auto')
    if m.attention_backend != 'xla':
        _choose(m, 'attention_dropout', 0.0)
    num_shards = num_devices // max(1, mesh.tensor)
    if not num_shards:
        raise ConfigError(f'slice={config.slice}: mesh.tensor={mesh.tensor} does not fit {num_devices} devices')
    if mesh.data not in (None, -1):
        _choose(mesh, 'fsdp', -1)
    else:
        _choose(mesh, 'fsdp', math.gcd(FSDP, num_shards))
        _choose(mesh, 'data', 1 if mesh.fsdp == -1 else -1)


def fit_microbatches(config: ml_collections.ConfigDict, num_devices: int, memory_bytes: int) -> None:
    """Decides, in place, in how few parts a batch passes through the model, where that is open.

    Args:
      config: with everything else decided.
      num_devices: of the slice.
      memory_bytes: of one device.

    Raises:
      ConfigError: when the devices do not divide the batch, or do not fit the mesh.
    """
    num_shards = num_devices // max(1, config.mesh.tensor)
    if config.batch_size % num_shards:
        raise ConfigError(
            f'slice={config.slice}: batch_size={config.batch_size} cannot be divided over its {num_devices} devices'
        )
    rows = config.batch_size // num_shards
    fixed_bytes, row_bytes = step_bytes(config, num_devices)
    at_once = (USABLE * memory_bytes - fixed_bytes) / row_bytes
    fitting = (n for n in range(1, rows + 1) if not rows % n and rows // n <= at_once)
    _choose(config, 'num_microbatches', next(fitting, rows))


def devices_of(name: str) -> tuple[int, int]:
    """The number of devices of a slice, and the memory of one in bytes; ConfigError for a slice that there is not."""
    try:
        return slices.size_of(name)
    except ValueError as error:
        raise ConfigError(f'slice={name}: {error}') from None


def _choose(node: ml_collections.ConfigDict, key: str, value, open_value=None) -> None:
    if node[key] == open_value:
        node[key] = value


def step_bytes(config: ml_collections.ConfigDict, num_devices: int) -> tuple[float, float]:
    """The memory of each device, estimated: whatever it has to do, and for each row of text that it has at a time."""
    m, sizes = config.model, flops.slot_sizes(config)
    spec, options = OBJECTIVES[config.objective], config.get(config.objective)
    parameters = m.width * config.vocab_size
    row_bytes = BYTES_OF_LOGIT * spec.num_logits(options, sizes) * config.vocab_size
    for stack in spec.stacks(m, options, sizes):
        parameters += stack.num_layers * costs.layer_weights(stack)
        row_bytes += BYTES_OF_UNIT * stack.num_layers * stack.tokens * stack.width * (2 if m.dtype == 'float32' else 1)
        if m.attention_backend == 'xla':
            row_bytes += BYTES_OF_PAIR * stack.num_layers * stack.tokens**2 * m.num_heads
    fixed_bytes = FIXED_BYTES + BYTES_OF_PARAMETER * parameters / _parts_of_state(config, num_devices)
    return fixed_bytes, flops.num_views(config) * row_bytes


def _parts_of_state(config: ml_collections.ConfigDict, num_devices: int) -> int:
    """Over how many devices parameters and optimizer state are split; ConfigError for a mesh that does not fit them."""
    try:
        _, fsdp, tensor = mesh_shape(num_devices, **config.mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return {'dp': 1, 'fsdp': fsdp, 'fsdp_tp': fsdp * tensor}[config.sharding]
