"""What a configuration is set to by `slice=v5e-16`, an argument of the configuration files: to run well on a TPU slice.

The choices come from compiling BERT-base and -large, of each objective, for slices that were not there (`bench
--topology`; RESULTS.md has the figures), and from published peaks; no TPU has run them. What is given beside `slice`
stays as it is given.
"""

from collections.abc import Collection

import ml_collections

from mlm_jax.config import ConfigError, get, row_length

FSDP = 16  # devices over which the state is split; more would make its parts thin, and gathering them slow
# The memory of a microbatch, bytes, a little above what compiled: for each token, layer and unit of width, and for each
# pair of tokens, layer and head, where attention keeps its probabilities.
BYTES_OF_UNIT, BYTES_OF_PAIR = 60, 4
FIXED_BYTES = 2 * 2**30  # the state, its gradients, the head
USABLE = 0.85  # of a device's memory


def apply(config: ml_collections.ConfigDict, name: str, given: Collection[str] = ()) -> None:
    """Sets what follows from the slice, in place: attention, sharding, the mesh, and the number of microbatches.

    Args:
      config: with everything else set.
      name: of the slice, as in `parallel/topology.py`.
      given: dotted keys that stay as they are.

    Raises:
      ConfigError: for a slice that there is not, or whose devices do not divide the batch.
    """
    from mlm_jax.parallel import topology  # here, since reading a configuration imports no JAX otherwise

    try:
        num_devices, memory_bytes = topology.size_of(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.batch_size % num_devices:
        raise ConfigError(
            f'slice={name}: batch_size={config.batch_size} cannot be divided over its {num_devices} devices'
        )
    fused = not config.model.relative_buckets  # a bias goes into no kernel
    chosen = {
        'accelerator': 'tpu',
        'model.attention_backend': 'splash' if fused else 'xla',
        'sharding': 'fsdp',
        'mesh.data': -1,
        'mesh.fsdp': min(FSDP, num_devices),
    }
    if fused:
        chosen['model.attention_dropout'] = 0.0
    for key, value in chosen.items():
        if key not in given:
            parent, _, last = key.rpartition('.')
            (get(config, parent) if parent else config)[last] = value
    if 'num_microbatches' not in given:
        rows_at_once = (USABLE * memory_bytes - FIXED_BYTES) / bytes_of_row(config)
        rows = config.batch_size // num_devices
        fitting = [n for n in range(1, rows + 1) if rows % n == 0 and rows / n <= rows_at_once]
        config.num_microbatches = fitting[0] if fitting else rows


def bytes_of_row(config: ml_collections.ConfigDict) -> float:
    """What a row of the model takes, about, from the forward pass to the backward one."""
    from mlm_jax.training import flops

    m, n = config.model, flops.needed_sizes(config).encoded
    stacks = [(m.num_layers, n, m.width)]
    if config.objective == 'mae_lm':
        stacks.append((config.mae_lm.decoder_layers, row_length(config), config.mae_lm.decoder_width or m.width))
    units = sum(layers * tokens * width for layers, tokens, width in stacks)
    pairs = sum(layers * tokens**2 * m.num_heads for layers, tokens, _ in stacks)
    kept = m.attention_backend == 'xla'
    return flops.num_views(config) * (BYTES_OF_UNIT * units + kept * BYTES_OF_PAIR * pairs)
