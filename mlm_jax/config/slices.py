"""What a configuration is set to by `slice=v5e-16`, an argument of the configuration files: to run well on a TPU slice.

The choices come from compiling BERT-base and -large, of each objective, for slices that were not there (`bench
--topology`; docs/results.md has the figures), and from published peaks; no TPU has run them. What is given beside
`slice` stays as it is given, and the rest is fitted to it; what overrides change afterwards (`--set=batch_size=…`) is
not.
"""

import math
from collections.abc import Collection

import ml_collections

from mlm_jax.config import ConfigError, get, row_length

FSDP = 16  # devices over which the state is split; more would make its parts thin, and gathering them slow
# The memory of a step, bytes, about what compiled: for each token, layer and unit of width in two bytes a number; for
# each pair of tokens, layer and head, where attention keeps its probabilities; for each logit; for each parameter with
# its gradient and its optimizer state; and besides.
BYTES_OF_UNIT, BYTES_OF_PAIR, BYTES_OF_LOGIT, BYTES_OF_PARAMETER = 50, 4, 8, 16
FIXED_BYTES = 1.5 * 2**30
USABLE = 0.85  # of a device's memory


def apply(config: ml_collections.ConfigDict, name: str, given: Collection[str] = ()) -> None:
    """Sets what follows from the slice, in place: attention, sharding, the mesh, and the number of microbatches.

    Args:
      config: with everything else set.
      name: of the slice, as in `parallel/topology.py`.
      given: dotted keys that stay as they are.

    Raises:
      ConfigError: for a slice that there is not, or whose devices do not fit the mesh or divide the batch; and as
        `config_check.check`.
    """
    from mlm_jax.config import checks as config_check
    from mlm_jax.parallel import topology  # here, since reading a configuration imports no JAX otherwise

    try:
        num_devices, memory_bytes = topology.size_of(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None

    def choose(key, value):
        if key not in given:
            parent, _, last = key.rpartition('.')
            (get(config, parent) if parent else config)[last] = value

    config_check.check_values(config)
    m, mesh = config.model, config.mesh
    wants_dropout = 'model.attention_dropout' in given and m.attention_dropout
    choose('accelerator', 'tpu')
    choose('model.attention_backend', 'xla' if m.relative_buckets or wants_dropout else 'splash')
    if m.attention_backend != 'xla':
        choose('model.attention_dropout', 0.0)
    num_shards = num_devices // max(1, mesh.tensor)
    if not num_shards:
        raise ConfigError(f'slice={name}: mesh.tensor={mesh.tensor} does not fit {num_devices} devices')
    if 'mesh.data' in given and mesh.data != -1:
        choose('mesh.fsdp', -1)
    else:
        choose('mesh.fsdp', math.gcd(FSDP, num_shards))
        choose('mesh.data', 1 if mesh.fsdp == -1 else -1)
    choose('sharding', 'dp' if mesh.fsdp == mesh.tensor == 1 else 'fsdp' if mesh.tensor == 1 else 'fsdp_tp')
    config_check.check(config)
    if config.batch_size % num_shards:
        raise ConfigError(
            f'slice={name}: batch_size={config.batch_size} cannot be divided over its {num_devices} devices'
        )
    rows = config.batch_size // num_shards
    fixed_bytes, row_bytes = step_bytes(config, num_devices)
    at_once = (USABLE * memory_bytes - fixed_bytes) / row_bytes
    fitting = (n for n in range(1, rows + 1) if not rows % n and rows // n <= at_once)
    choose('num_microbatches', next(fitting, rows))


def _parts_of_state(config: ml_collections.ConfigDict, num_devices: int) -> int:
    """Over how many devices parameters and optimizer state are split; ConfigError for a mesh that does not fit them."""
    from mlm_jax.parallel.mesh import mesh_shape

    try:
        _, fsdp, tensor = mesh_shape(num_devices, **config.mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return {'dp': 1, 'fsdp': fsdp, 'fsdp_tp': fsdp * tensor}[config.sharding]


def step_bytes(config: ml_collections.ConfigDict, num_devices: int) -> tuple[float, float]:
    """The memory of each device, estimated: whatever it has to do, and for each row of text that it has at a time."""
    from mlm_jax.performance import flops

    m, sizes = config.model, flops.slot_sizes(config)
    logits = config.exlm.num_states * sizes.expanded or sizes.masked
    stacks = [(m.num_layers, sizes.encoded, m)]
    if config.objective == 'mae_lm':
        stacks.append((config.mae_lm.decoder_layers, row_length(config), flops.mae_lm_decoder(config)))
    parameters, row_bytes = m.width * config.vocab_size, BYTES_OF_LOGIT * logits * config.vocab_size
    for layers, tokens, stack in stacks:
        parameters += layers * flops.layer_weights(stack)
        row_bytes += BYTES_OF_UNIT * layers * tokens * stack.width * (2 if m.dtype == 'float32' else 1)
        if m.attention_backend == 'xla':
            row_bytes += BYTES_OF_PAIR * layers * tokens**2 * m.num_heads
    fixed_bytes = FIXED_BYTES + BYTES_OF_PARAMETER * parameters / _parts_of_state(config, num_devices)
    return fixed_bytes, flops.num_views(config) * row_bytes
