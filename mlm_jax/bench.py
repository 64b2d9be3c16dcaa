"""Measures the speed of training steps, several configurations interleaved in one run.

    python -m mlm_jax.bench --config=configs/mlm.py:mini --config=configs/mae_lm.py:mini --set=batch_size=32
    python -m mlm_jax.bench --config=configs/mlm.py:mini --rows=data/demo          real rows, and the reading of them
    python -m mlm_jax.bench --config=configs/mlm.py:mini --profile=runs/profile    where the time of a step goes
    python -m mlm_jax.bench --config=configs/mlm.py:mini,recipe=roberta --peer=huggingface        beside PyTorch
    python -m mlm_jax.bench --topology=v5e-16 --config=configs/mlm.py:base,slice=v5e-16

Each round takes the configurations in turn, so that what else the machine does falls on all of them alike; figures are
medians over rounds, and ratios medians of the ratios within rounds. Rows are made up unless --rows names a directory
that `prepare` wrote.

  step ms      of one optimizer step, with its quartiles; masks are drawn within it.
  CPU ms       on CPUs: time of all cores together, which the load of a shared machine changes least.
  tokens/s     of text, whatever an objective makes of them.
  TFLOP/s      that the model needs (mlm_jax/config/step_flops.py), by the time of the step.
  MFU          that, by the published peak of the devices for the dtype; where none is published,
  of matmul    by what one large matrix product attains on this machine, in the same rounds.
  masking, optimizer    timed apart, as shares of the step that contains them.
  memory       of one device, by the compiler: state, batch and temporaries.
  input, stall          with --rows: tokens/s that reading could deliver, and the share of a step spent waiting for it.

--peer=huggingface puts the model, the batch, the masks and the optimizer of the first configuration into PyTorch
(`transformers.BertForMaskedLM`; mlm_jax/performance/pytorch_peer.py; extra `peer`), on the kind of device that JAX
uses, a CPU or one GPU, and prints how many times as many tokens each configuration has taken per second.
--profile traces 3 steps of each configuration (mlm_jax/performance/step_profile.py); TensorBoard reads the traces too.
--topology runs nothing: it compiles the steps for a TPU slice that is not here (extra `tpu`), as `doctor` does, and
prints the memory of a device, products, bytes moved, collectives (those between slices, too, if there are several, as
in 2xv5e-16), and by published peaks a PREDICTION: the time of a step from where all of these overlap to where nothing
does (mlm_jax/performance/roofline.py). By default it compiles with little effort, six times as fast, which divides the
step and takes memory as a full one does, but fuses less: bytes are then an upper bound.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from absl import flags

from mlm_jax.config import ConfigError, command_line
from mlm_jax.files import buckets, paths
from mlm_jax.parallel import topology
from mlm_jax.performance import ahead_of_time, peaks, prediction, pytorch_peer, speed, step_profile
from mlm_jax.performance.speed import measure, prepare
from mlm_jax.training import build
from mlm_jax.training.metrics import ProgressLine

_MEASURING = ('rows', 'rounds', 'steps', 'peer', 'peer_variants', 'profile')  # flags of what runs


def report(contestants: list[speed.Contestant], matmuls: dict[str, speed.LargeMatmul] | None = None) -> list[dict]:
    """Medians, quartiles, rates, and ratios to the first contestant.

    Args:
      contestants: measured in the same rounds.
      matmuls: dtype → one large product, measured in the same rounds too.
    """
    return [_line(contestant, contestants[0], matmuls or {}) for contestant in contestants]


def _line(c: speed.Contestant, first: speed.Contestant, matmuls: dict[str, speed.LargeMatmul]) -> dict:
    device = jax.devices()[0]
    low, median, high = np.percentile(c.seconds, [25, 50, 75])
    line = {
        'config': c.name,
        'step_ms': 1000 * median,
        'step_ms_quartiles': [1000 * low, 1000 * high],
        'tokens_per_second': c.tokens_per_step / median,
        'tflops_per_second': c.flops_per_step / median / 1e12,
        'compile_seconds': c.compile_seconds,
        'time_per_token_ratio': _per_token_ratio(c, first, 'seconds'),
        'flops_per_token_ratio': c.flops_per_step / c.tokens_per_step / first.flops_per_step * first.tokens_per_step,
        'memory_bytes': c.memory_bytes,
        'device': device.device_kind,
        'num_devices': c.num_devices,
        'dtype': c.dtype,
        'flops_per_step': c.flops_per_step,
    }
    if device.platform == 'cpu':
        line['cpu_ms'] = 1000 * float(np.median(c.cpu_seconds))
        line['cpu_time_per_token_ratio'] = _per_token_ratio(c, first, 'cpu_seconds')
    if statistics := device.memory_stats():
        line['peak_bytes_in_use'] = statistics.get('peak_bytes_in_use')  # of the whole process so far
    for part, seconds in c.parts.items():
        line[f'{part}_ms'] = 1000 * float(np.median(seconds))
        line[f'{part}_share'] = float(np.median(np.array(seconds) / np.array(c.seconds)))
    if 'input' in c.parts:
        line['flops_within_documents'] = c.flops_within_documents()
        line['input_tokens_per_second'] = c.tokens_per_step / float(np.median(c.parts['input']))
        line['stall_share'] = float(np.median(np.array(c.parts['stall']) / np.array(c.parts['fed'])))
    if peak := peaks.peak_flops_per_second(device.device_kind, c.dtype):
        line['mfu'] = c.flops_per_step / median / (peak * c.num_devices)
    if matmul := matmuls.get(c.dtype):
        # Devices that are threads of one CPU share what one product has to itself.
        devices = 1 if device.platform == 'cpu' else c.num_devices
        attained = [one / other for one, other in zip(matmul.seconds, c.seconds, strict=True)]
        line['matmul_share'] = float(np.median(attained)) * c.flops_per_step / matmul.flops_per_step / devices
        line['matmul_tflops_per_second'] = matmul.tflops_per_second
    return line


def _per_token_ratio(c: speed.Contestant, other: speed.Contestant, times: str) -> float:
    """The time that `c` takes for a token, over that of `other`: both sides of a round ran under the same load."""
    ratios = np.array(getattr(c, times)) / np.array(getattr(other, times))
    return float(np.median(ratios)) * other.tokens_per_step / c.tokens_per_step


_COLUMNS = {
    'step ms': lambda line: f'{line["step_ms"]:.1f}',
    'quartiles': lambda line: '{:.1f} … {:.1f}'.format(*line['step_ms_quartiles']),
    'CPU ms': lambda line: f'{line["cpu_ms"]:.1f}',
    'tokens/s': lambda line: f'{line["tokens_per_second"]:,.0f}',
    'TFLOP/s': lambda line: f'{line["tflops_per_second"]:.3f}',
    'MFU': lambda line: f'{line["mfu"]:.1%}',
    'of matmul': lambda line: f'{line["matmul_share"]:.1%}',
    'masking': lambda line: f'{line["masking_share"]:.2%}',
    'optimizer': lambda line: f'{line["optimizer_share"]:.1%}',
    'memory MiB': lambda line: f'{line["memory_bytes"] / 2**20:,.0f}',
    'input tokens/s': lambda line: f'{line["input_tokens_per_second"]:,.0f}',
    'stall': lambda line: f'{line["stall_share"]:.1%}',
    'compile s': lambda line: f'{line["compile_seconds"]:.1f}',
    'time ratio': lambda line: f'{line["time_per_token_ratio"]:.3f}',
    'CPU ratio': lambda line: f'{line["cpu_time_per_token_ratio"]:.3f}',
    'FLOP ratio': lambda line: f'{line["flops_per_token_ratio"]:.3f}',
}


def table(lines: list[dict]) -> str:
    """The lines of a report, aligned; columns that nobody has are left out."""
    cells = {title: [_cell(text, line) for line in lines] for title, text in _COLUMNS.items()}
    cells = {title: column for title, column in cells.items() if any(cell != '–' for cell in column)}
    widths = {title: 2 + max(len(title), *map(len, column)) for title, column in cells.items()}
    rows = [''.join(title.rjust(width) for title, width in widths.items()) + '  config']
    for number, line in enumerate(lines):
        rows.append(
            ''.join(cells[title][number].rjust(width) for title, width in widths.items()) + f'  {line["config"]}'
        )
    return '\n'.join(rows)


def _cell(text, line: dict) -> str:
    try:
        return text(line)
    except (KeyError, TypeError):  # what does not apply to this line, or is not known of it
        return '–'


def peers(contestant: speed.TrainStep, variants: list[str]) -> tuple[list[pytorch_peer.PyTorchStep], dict[str, str]]:
    """The step of a contestant in PyTorch, and name → why, of those variants that PyTorch cannot compile here.

    Raises:
      ConfigError: when BertForMaskedLM cannot do what the configuration asks for, or there are several devices.
      ImportError: without the extra `peer`.
    """
    config, encoder = contestant.config, build.encoder_config(contestant.config)
    pytorch_peer.check(config, encoder)
    if contestant.num_devices > 1:
        raise ConfigError(
            f'the peer runs on one device, the configuration on {contestant.num_devices}: set CUDA_VISIBLE_DEVICES=0'
        )
    _, learning_rate = build.make_optimizer_of_run(config)
    params, batch = jax.device_get(contestant.state.params), contestant.masked_batch()
    found, failed = [], {}
    for number, name in enumerate(variants, 1):
        _note(f'preparing PyTorch, {name} ({number} of {len(variants)})')
        try:
            found.append(
                pytorch_peer.PyTorchStep(
                    f'PyTorch {name}', pytorch_peer.VARIANTS[name], config, encoder, params, batch,
                    float(learning_rate(0)), contestant.tokens_per_step, contestant.flops_per_step,
                )
            )  # fmt: skip
        except pytorch_peer.CannotCompile as error:
            failed[f'PyTorch {name}'] = str(error)
            _note(f'left out: {error}')
        else:
            _note(f'ready in {found[-1].compile_seconds:.1f} s')
    return found, failed


def ratios(ours: list[speed.TrainStep], others: list[pytorch_peer.PyTorchStep]) -> dict[str, dict[str, float]]:
    """Peer → configuration → how many times the tokens/s of the peer it has: medians of the ratios within rounds."""
    return {other.name: {our.name: _per_token_ratio(other, our, 'seconds') for our in ours} for other in others}


def ratio_table(ratios: dict[str, dict[str, float]], failed: dict[str, str]) -> str:
    """The `ratios`, a row for each peer, behind those that cannot be compiled, with the reason."""
    names = list(next(iter(ratios.values()), ()))
    width = 2 + max(map(len, [*ratios, *failed]))
    rows = [f'{peer.ljust(width)}cannot be compiled here: {reason}' for peer, reason in failed.items()]
    if ratios:
        numbers = range(1, len(names) + 1)
        rows += ['times the tokens/s of PyTorch that', *(f'  [{n}] {name}' for n, name in zip(numbers, names)), 'has']
        rows.append(' ' * width + ''.join(f'[{number}]'.rjust(9) for number in numbers))
        rows += [peer.ljust(width) + ''.join(f'{ratio:9.2f}' for ratio in row.values()) for peer, row in ratios.items()]
    return '\n'.join(rows)


def predict(configs: Sequence[tuple[str, ml_collections.ConfigDict]], slice_name: str, full_effort: bool) -> list[dict]:
    """Compiles the steps of configurations, given with their names, for a TPU slice; prints a table of what they ask.

    Raises:
      ConfigError: for a configuration that cannot run there, and a slice that there is not.
      ImportError: without the extra `tpu`.
    """
    try:
        devices = topology.tpu_devices(slice_name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    options, lines = None if full_effort else ahead_of_time.LOW_EFFORT, []
    for number, (name, config) in enumerate(configs, 1):
        _note(f'compiling {name} for {slice_name} ({number} of {len(configs)})')
        start = time.perf_counter()
        lines.append(prediction.predict(name, config, devices, options))
        lines[-1] |= {'topology': slice_name, 'compile_seconds': time.perf_counter() - start}
        _note(f'compiled in {lines[-1]["compile_seconds"]:.1f} s')
    print(f'{slice_name}: {len(devices)} × {devices[0].device_kind}, per device and step; times are a PREDICTION from')
    print(
        'published peaks, from where products, memory, links and the network between slices overlap to where nothing '
        'does; nothing has run there\n'
    )
    print(prediction.table(lines))
    return lines


def main() -> None:
    """Prints tables, and writes JSON where asked."""
    values, configs = flags.FLAGS, command_line.configurations()
    if values.topology:
        if given := [f'--{name}' for name in _MEASURING if command_line.is_given(name)]:
            raise ConfigError(f'--topology runs nothing: leave out {" and ".join(given)}')
        _write(predict(configs, values.topology, values.full_effort))
        return
    command_line.check_companions({'full_effort': 'topology', 'peer_variants': 'peer'})
    if len(set(values.config)) < len(values.config):
        raise ConfigError('a --config is given twice; measured beside itself, it would say nothing')
    if values.peer:
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # two frameworks share the memory of a GPU
        pytorch_peer.device_type()
    contestants = []
    for number, (name, config) in enumerate(configs, 1):
        _note(f'compiling {name} ({number} of {len(configs)})')
        contestants.append(prepare(name, config, rows=values.rows))
        _note(f'compiled in {contestants[-1].compile_seconds:.1f} s')
    others, failed = peers(contestants[0], values.peer_variants) if values.peer else ([], {})
    everyone: list[speed.Contestant] = [*contestants, *others]
    matmuls = {dtype: speed.LargeMatmul(dtype) for dtype in dict.fromkeys(c.dtype for c in everyone)}
    _note(f'one step of each that does not count, then {values.rounds} rounds')
    progress = ProgressLine(values.rounds, unit='round')
    measure([*everyone, *matmuls.values()], values.rounds, values.steps, parts=True, progress=progress)
    progress.note('')
    lines = report(everyone, matmuls)
    print(table(lines))
    if values.set:
        print(f'all with {" ".join(f"--set={setting}" for setting in values.set)}')
    for matmul in matmuls.values():
        print(f'{matmul.name}: {matmul.tflops_per_second:.3f} TFLOP/s')
    if values.peer:
        compared = ratios(contestants, others)
        print('\n' + ratio_table(compared, failed))
        for line in lines:
            line['ratios_to_configurations'] = compared.get(line['config'])
        lines += [{'config': name, 'error': reason} for name, reason in failed.items()]
    if values.profile:
        directory = pathlib.Path(values.profile).expanduser()
        profiles = {c.name: step_profile.trace_step(c, directory / str(n)) for n, c in enumerate(contestants)}
        print('\n' + step_profile.format_profiles(profiles))
        for line in lines[: len(contestants)]:
            line['profile_seconds'] = profiles[line['config']].seconds
    _write(lines)


def _write(lines: list[dict]) -> None:
    lines = [line | {'settings': flags.FLAGS.set} for line in lines]
    if path := flags.FLAGS.output:
        buckets.path(path).expanduser().write_text(json.dumps(lines, indent=2) + '\n', encoding='utf-8')


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
    command_line.define_config_flags()
    paths.define_flag('rows', None, 'A directory that prepare wrote: its rows, and the reading of them.', 'directory')
    flags.DEFINE_integer('rounds', 10, 'Rounds; figures are medians over them.', lower_bound=1)
    flags.DEFINE_integer('steps', 2, 'Steps of each configuration in a round.', lower_bound=1)
    flags.DEFINE_enum('peer', None, ['huggingface'], 'Measures the first configuration in PyTorch too.')
    flags.DEFINE_multi_enum(
        'peer_variants',
        pytorch_peer.DEFAULT_VARIANTS,
        list(pytorch_peer.VARIANTS),
        'How PyTorch runs it; `everywhere` computes logits at every position, as its users do.',
    )
    paths.define_flag(
        'profile', None, 'Directory for traces; prints where the time of a step goes, by kind of work.', 'directory',
        takes_buckets=False,
    )  # fmt: skip
    flags.DEFINE_string(
        'topology',
        None,
        'A TPU slice to compile for, such as v5e-16, v6e-256 or v5p-64, or several: 2xv5e-256; runs nothing.',
    )
    flags.DEFINE_bool('full_effort', False, 'With --topology, compiles as a run does: many minutes for a large model.')
    paths.define_flag('output', None, 'File for the figures as JSON.', 'file')
    command_line.run(main, required=('config',))
