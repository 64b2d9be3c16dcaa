"""`slice=v5e-16` and the like: chooses the keys that are left open so that a run suits a TPU slice.

The choices come from compiling BERT-base and BERT-large with each objective for TPU slices ahead of time (`bench
--topology`; docs/results.md has the figures) and from published peak performance; they were not run on a TPU. Keys
that the user has set do not change, and the other keys are chosen to go with them.
"""

import math
from typing import Any

import ml_collections

from mlm_jax.config import step_flops
from mlm_jax.files.errors import ConfigError
from mlm_jax.objectives import layer_flops
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.parallel import tpu_slices
from mlm_jax.parallel.layout import check_within_slices, mesh_shape

FSDP = 16  # over how many devices the state is split; with more, its shards would be thin and slow to gather
# An estimate of the memory of a step, close to that of compiled programs, in bytes: for each token, layer and unit of
# the width, if activations have two bytes; for each pair of tokens, layer and head, if attention stores its
# probabilities; for each logit; for each parameter, with gradient and optimizer state; and a constant.
BYTES_OF_UNIT, BYTES_OF_PAIR, BYTES_OF_LOGIT, BYTES_OF_PARAMETER = 50, 4, 8, 16
BYTES_OF_AVERAGE = 4  # for each parameter, where a moving average is kept
BYTES_OF_WHOLE = 12.5  # for each parameter that a device does not store, but holds during a step (fsdp_gather=step)
FIXED_BYTES = 1.5 * 2**30
USABLE = 0.85  # the share of a device's memory to fill
# The same with fsdp_gather=step. Estimates of steps that gather by layer are 3 to 28 % above what compiled, and whole
# weights and gradients have hardly more bytes than estimated.
USABLE_BY_WHOLE = 0.95


def fit_layout(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Chooses, in place, the open keys of the accelerator, attention and the mesh.

    Args:
      config: a configuration with `slice`.
      num_devices: the number of devices of all slices together.

    Raises:
      ConfigError: if the mesh does not fit the devices, or an axis other than `data` would cross slices.
    """
    m, mesh = config.model, config.mesh
    _choose(config, 'accelerator', 'tpu', open_value='auto')
    windows_elsewhere = m.local_window and not OBJECTIVES[config.objective].reads_inputs
    needs_xla = m.relative_buckets or m.attention_dropout or windows_elsewhere
    _choose(m, 'attention_backend', 'xla' if needs_xla else 'splash', open_value='auto')
    if m.attention_backend != 'xla':
        _choose(m, 'attention_dropout', 0.0)
    num_slices, _ = tpu_slices.parts_of(config.slice)
    num_shards = num_devices // num_slices // max(1, mesh.tensor)  # of the state, and of the batch, in one slice
    if not num_shards:
        raise ConfigError(f'slice={config.slice}: mesh.tensor={mesh.tensor} does not fit {num_devices} devices')
    if mesh.data not in (None, -1):
        _choose(mesh, 'fsdp', -1)
    else:
        _choose(mesh, 'fsdp', math.gcd(FSDP, num_shards))
        _choose(mesh, 'data', num_slices if mesh.fsdp == -1 else -1)
    if num_slices > 1:
        _, fsdp, tensor = _mesh_shape(config, num_devices)
        try:
            check_within_slices([num_devices // num_slices] * num_slices, fsdp, tensor)
        except ValueError as error:
            raise ConfigError(f'slice={config.slice}: {error}') from None


def fit_microbatches(config: ml_collections.ConfigDict, num_devices: int, memory_bytes: int) -> None:
    """Sets `num_microbatches`, in place, to the smallest number with which a step fits into memory, if it is open.

    Args:
      config: a configuration in which all other keys are decided.
      num_devices: the number of devices of the slice.
      memory_bytes: the memory of one device.

    Raises:
      ConfigError: if the devices do not divide the batch, or do not fit the mesh.
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


def fit_gather(config: ml_collections.ConfigDict, num_devices: int = 0, memory_bytes: int | None = None) -> None:
    """Chooses `fsdp_gather`, in place, if it is open: once in a step where this saves anything and fits into memory.

    It saves something if microbatches would repeat the gathering of whole weights. Where there is one microbatch,
    gathering a layer can overlap with computing another; where `tensor` splits weights, nothing is whole.

    Args:
      config: a configuration in which all other keys are decided.
      num_devices: the number of devices of all slices together, if `memory_bytes` is given.
      memory_bytes: the memory of one device; None if it is not known, and taken to be sufficient.
    """
    if config.fsdp_gather != 'auto':
        return
    config.fsdp_gather = 'step' if config.num_microbatches > 1 and config.mesh.tensor == 1 else 'layer'
    if config.fsdp_gather == 'step' and memory_bytes is not None:
        fixed_bytes, row_bytes = step_bytes(config, num_devices)
        rows = config.batch_size // config.num_microbatches // num_devices
        if fixed_bytes + rows * row_bytes > USABLE_BY_WHOLE * memory_bytes:
            config.fsdp_gather = 'layer'


def devices_of(name: str) -> tuple[int, int]:
    """The number of devices of a slice, and the memory of each in bytes; ConfigError if there is no such slice."""
    try:
        return tpu_slices.size_of(name)
    except ValueError as error:
        raise ConfigError(f'slice={name}: {error}') from None


def _choose(node: ml_collections.ConfigDict, key: str, value: Any, open_value: Any = None) -> None:
    """Sets a key to `value` if it is open, that is, if it has the value `open_value`."""
    if node[key] == open_value:
        node[key] = value


def step_bytes(config: ml_collections.ConfigDict, num_devices: int) -> tuple[float, float]:
    """Estimates the memory of each device in bytes: a fixed part, and a part for each row of text in a microbatch."""
    m, sizes = config.model, step_flops.slot_sizes(config)
    spec, options = OBJECTIVES[config.objective], config.get(config.objective)
    parameters = m.width * config.vocab_size * (1 if m.tied_head else 2)
    row_bytes = BYTES_OF_LOGIT * spec.num_logits(options, sizes) * config.vocab_size
    for stack in spec.stacks(m, options, sizes):
        parameters += stack.num_layers * layer_flops.layer_weights(stack)
        row_bytes += BYTES_OF_UNIT * stack.num_layers * stack.tokens * stack.width * (2 if m.dtype == 'float32' else 1)
        if m.attention_backend == 'xla':
            row_bytes += BYTES_OF_PAIR * stack.num_layers * stack.tokens**2 * stack.num_heads
    state = BYTES_OF_PARAMETER + (BYTES_OF_AVERAGE if config.ema.decay else 0)
    parts = _parts_of_state(config, num_devices)
    fixed_bytes = FIXED_BYTES + state * parameters / parts
    if config.fsdp_gather == 'step':
        fixed_bytes += BYTES_OF_WHOLE * parameters * (1 - 1 / parts)
    return fixed_bytes, step_flops.num_views(config) * row_bytes


def _parts_of_state(config: ml_collections.ConfigDict, num_devices: int) -> int:
    """Over how many devices the state is split; ConfigError if the mesh does not fit the devices."""
    _, fsdp, tensor = _mesh_shape(config, num_devices)
    return {'dp': 1, 'fsdp': fsdp, 'fsdp_tp': fsdp * tensor}[config.sharding]


def _mesh_shape(config: ml_collections.ConfigDict, num_devices: int) -> tuple[int, int, int]:
    try:
        return mesh_shape(num_devices, **config.mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from None
