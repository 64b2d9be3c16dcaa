"""A table of what steps need on a TPU slice that is not present, and of the time they take by its published peaks."""

from typing import Any

import jax
import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.config import step_flops
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.parallel import tpu_slices
from mlm_jax.performance import ahead_of_time, collectives, roofline
from mlm_jax.performance.memory import MIB


def predict(
    name: str, config: ml_collections.ConfigDict, devices: list[jax.Device], compiler_options: dict | None
) -> dict:
    """Compiles the step of a configuration for devices that need not be present, and predicts its time.

    Args:
      name: the name of the configuration in tables.
      config: any configuration; it is resolved here.
      devices: as `parallel.topology.tpu_devices` returns them.
      compiler_options: options of XLA.

    Returns:
      A line for `table`, which JSON can hold. If the step does not fit the memory of the devices, it has only the names
      and 'error'.

    Raises:
      ConfigError: for a configuration that cannot run on these devices.
    """
    config = config_lib.resolve(config)
    kind, count = devices[0].device_kind, len(devices)
    line: dict[str, Any] = {'config': name, 'device': kind, 'num_devices': count}
    try:
        needs = ahead_of_time.examine_train_step(config, devices, compiler_options)
    except ahead_of_time.DoesNotFit as error:
        return line | {'error': str(error)}
    needed, in_kernel = step_flops.step_flops(config), config.model.attention_backend != 'xla'
    line |= {
        'memory_bytes': needs.memory.total_bytes,
        'memory_limit_bytes': tpu_slices.memory_bytes(kind),
        'flops': needs.flops,
        'flops_needed': needed / count,
        'attention_hidden_in_a_kernel': in_kernel,
        'accessed_bytes': needs.accessed_bytes,
        'collectives': {key: list(value) for key, value in needs.collectives.items()},
        'between_slices': {key: list(value) for key, value in needs.between_slices.items()},
    }
    hidden = step_flops.attention_flops(config) if in_kernel else 0.0
    num_slices = len(mesh_lib.by_slice(devices))
    if prediction := roofline.predict(needs, kind, count, config.model.dtype, needed, hidden, num_slices):
        line['prediction'] = {
            'product_ms': 1000 * prediction.product_seconds,
            'memory_ms': 1000 * prediction.memory_seconds,
            'link_ms': 1000 * prediction.link_seconds,
            'network_ms': 1000 * prediction.network_seconds,
            'step_ms': [1000 * prediction.shortest, 1000 * prediction.longest],
            'mfu': list(prediction.mfu),
            'bound': prediction.bound,
            'tokens_per_second': [
                config.batch_size * config.sequence_length / seconds
                for seconds in (prediction.longest, prediction.shortest)
            ],
        }
    return line


def table(lines: list[dict]) -> str:
    """An aligned table with a row for each configuration, and below it the collectives of each."""
    titles = (
        'memory MiB', 'TFLOP', 'needed', 'GB moved', 'products ms', 'memory ms', 'links ms', 'network ms', 'step ms',
        'tokens/s', 'MFU',
    )  # fmt: skip
    rows = [_cells(line) for line in lines]
    widths = [2 + max(len(title), *(len(row[i]) for row in rows)) for i, title in enumerate(titles)]
    text = [''.join(title.rjust(width) for title, width in zip(titles, widths)) + '  config']
    for line, row in zip(lines, rows):
        text.append(''.join(cell.rjust(width) for cell, width in zip(row, widths)) + f'  {line["config"]}')
    for line in lines:
        text.append(f'\n{line["config"]}')
        if 'error' in line:
            text.append('  does not fit: ' + line['error'].replace('\n', '\n  '))
            continue
        text += [f'  {row}' for row in collectives.table(line['collectives'])]
        if not line['collectives']:
            text.append('  no collectives')
        if line['between_slices']:
            text += [
                f'  {collectives.NETWORK_TITLE}:',
                *(f'  {row}' for row in collectives.table(line['between_slices'])),
            ]
        if line['attention_hidden_in_a_kernel']:
            text.append('  TFLOP leaves out the attention, which a fused kernel computes; products ms includes it')
    return '\n'.join(text)


def _cells(line: dict) -> list[str]:
    if 'error' in line:
        return ['too much'] + ['–'] * 10
    limit = line['memory_limit_bytes']
    cells = [
        f'{line["memory_bytes"] / MIB:,.0f}' + (f' of {limit / MIB:,.0f}' if limit else ''),
        f'{line["flops"] / 1e12:.2f}',
        f'{line["flops_needed"] / 1e12:.2f}',
        f'{line["accessed_bytes"] / 1e9:.1f}',
    ]
    if (p := line.get('prediction')) is None:
        return cells + ['–'] * 7
    return [
        *cells,
        *(f'{p[key]:.1f}' for key in ('product_ms', 'memory_ms', 'link_ms', 'network_ms')),
        '{:.1f} … {:.1f}'.format(*p['step_ms']),
        '{:,.0f} … {:,.0f}'.format(*p['tokens_per_second']),
        '{:.0%} … {:.0%}'.format(*p['mfu']),
    ]
