"""Checks whether this machine, or a TPU slice that is not present, can run a configuration.

    python -m mlm_jax.doctor --config=configs/mlm.py:mini
    python -m mlm_jax.doctor --config=configs/mlm.py:base,slice=v5e-16 --topology=v5e-16
    python -m mlm_jax.doctor --config=configs/mlm.py:mini --verify      reads all of the prepared data, too

Without --topology, the program checks this machine: the configuration, the prepared data, the disk, the devices, and
the train step, which is compiled but not run. If the configuration uses an attention kernel, the kernel runs, and its
results are compared with those of the reference. With --verify, the program reads all prepared data and compares the
checksum of each file. With --topology, it compiles the step for the slice, on any machine with libtpu (extra `tpu`),
and reports what the step needs there; 2xv5e-16 means two slices that a data-center network joins.

The exit status is 1 when a check fails. Each line that starts with ✗ tells what to do.
"""

import functools
import math
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator

import jax
import ml_collections
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError, command_line, host_memory, step_flops
from mlm_jax.data import prepared_data, verification
from mlm_jax.data.prepared_data import PreparedData, Source
from mlm_jax.files import buckets, paths
from mlm_jax.files.buckets import BucketPath
from mlm_jax.parallel import mesh, tpu_slices
from mlm_jax.parallel import topology as topology_lib
from mlm_jax.performance import ahead_of_time, attention_parity, collectives, peaks, roofline
from mlm_jax.performance.memory import MIB
from mlm_jax.pretrained import warm_start
from mlm_jax.training import build, runtime
from mlm_jax.training.state import num_parameters


def examine(
    config: ml_collections.ConfigDict, topology: str | None, workdir: pathlib.Path, verify: bool = False
) -> Iterator[tuple[bool, str]]:
    """Yields (whether it passed, text) for each check; a check is left out if an earlier failure makes it impossible.

    Args:
      config: any configuration, valid or not.
      topology: a TPU slice to compile for, as `parallel.topology` names them; None means this machine.
      workdir: the directory into which the run would write.
      verify: whether the checksums of the prepared data are compared, which takes as long as reading the data.

    Raises:
      ValueError: for an unknown topology.
    """
    configuration = _try(lambda: _check_configuration(config))
    yield configuration
    if not configuration[0]:
        return
    config = config_lib.resolve(config)
    if topology:
        if verify:
            yield from _check_prepared(config, verify)
        devices = topology_lib.tpu_devices(topology)
        yield True, f'{topology}: {_describe(devices)}'
        yield from _check_step(config, devices, ahead_of_time.LOW_EFFORT)
        return
    yield from _check_prepared(config, verify)
    yield _try(lambda: _check_disk(config, workdir))
    runtime.use_compilation_cache(config.compilation_cache)
    yield True, f'this machine: {_describe(jax.devices())}'
    all_fine = True
    for finding in _check_step(config, jax.devices(), None):
        all_fine = all_fine and finding[0]
        yield finding
    if all_fine and config.model.attention_backend != 'xla':
        yield _check_attention(config)


def _try(check: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, check()
    except ConfigError as error:
        return False, str(error)


def _describe(devices: list[jax.Device]) -> str:
    num_slices = len(mesh.by_slice(devices)) if devices[0].platform == 'tpu' else 1
    return f'{len(devices)} × {devices[0].device_kind}' + (f' in {num_slices} slices' if num_slices > 1 else '')


def _check_configuration(config: ml_collections.ConfigDict) -> str:
    return f'configuration: {num_parameters(build.state_shapes(config_lib.resolve(config)).params):,} parameters'


def _check_prepared(config: ml_collections.ConfigDict, verify: bool) -> Iterator[tuple[bool, str]]:
    try:
        data = prepared_data.load(config.data)
    except ConfigError as error:
        yield False, str(error)
        return
    yield _try(lambda: _check_data(config, data))
    for source in data.sources:
        fine, text = _try(functools.partial(_check_files, source, verify))
        yield fine, f'{text} ({source.directory})' if fine and data.is_mixture else text


def _check_data(config: ml_collections.ConfigDict, data: PreparedData) -> str:
    prepared_data.fitted(config, data)  # raises ConfigError if the configuration does not fit the data
    data.tables(config.masking)
    warm_start.check_source(config, data.manifest)
    rows = {name: data.split(name).rows for name in data.manifest.splits}
    text = f'data: {", ".join(f"{count:,} rows in {name}" for name, count in rows.items())} ({config.data.directory})'
    return '\n'.join(filter(None, (text, data.describe())))


def _check_files(source: Source, verify: bool) -> str:
    """Checks the sizes of all files of a prepared directory, and with `verify` their checksums."""
    findings = verification.examine(source.directory, source.manifest, verify)
    if findings.wrong:
        raise ConfigError(verification.describe(source.directory, findings.wrong))
    count, notes = len(verification.hashes(source.manifest)), ''
    if findings.surplus:
        notes += f'; these files are not part of the prepared data, and are ignored: {", ".join(findings.surplus)}'
    if verify and findings.unknown:
        notes += f'; the manifest has no checksum of {findings.unknown} other files'
    if verify:
        return f'files: {findings.verified} have the SHA-256 checksums that prepare recorded{notes}'
    return f'files: {count} have the sizes that prepare recorded{notes}; --verify compares their checksums, too'


def _most_checkpoints(config: ml_collections.ConfigDict) -> int:
    """How many checkpoints of a run with a resolved configuration are on the disk at the same time, at most."""
    options, total = config.checkpoint, config.total_steps
    kept = total // math.lcm(options.every_steps or total, options.keep_steps) if options.keep_steps else 0
    return kept + options.keep_last + 1  # a new checkpoint is written before the oldest is deleted


def _check_disk(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> str:
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(build.state_shapes(config)))
    number = _most_checkpoints(config)
    needed, what = state * number, f'{number:,} checkpoints'
    if isinstance(workdir, BucketPath):
        try:
            workdir.exists()
        except OSError as error:
            raise ConfigError(f'bucket: {workdir} cannot be read: {error.strerror}') from None
        return f'bucket: {what} take {needed / MIB:,.0f} MiB in {workdir}'
    existing = next(parent for parent in (workdir.absolute(), *workdir.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        keep = config.checkpoint.keep_steps
        raise ConfigError(
            f'disk: {what} take {needed / MIB:,.0f} MiB, but {existing} has {free / MIB:,.0f} MiB free; '
            'choose another workdir, or lower checkpoint.keep_last'
            + (f', or keep fewer with a checkpoint.keep_steps above {keep:,}' if keep else '')
        )
    return f'disk: {what} take {needed / MIB:,.0f} MiB of the {free / MIB:,.0f} MiB free at {existing}'


def _check_step(
    config: ml_collections.ConfigDict, devices: list[jax.Device], options: dict | None
) -> Iterator[tuple[bool, str]]:
    """Compiles the train step for `devices`, and yields its memory, its FLOPs and its collectives."""
    try:
        needs = ahead_of_time.examine_train_step(config, devices, options)
    except ConfigError as error:
        yield False, str(error)
        return
    except ahead_of_time.DoesNotFit as error:
        yield False, f'memory: {error}'
        return
    memory = needs.memory
    parts = {'state and batch': memory.argument_bytes, 'temporaries': memory.temporary_bytes,
             'output': memory.output_bytes, 'program': memory.program_bytes}  # fmt: skip
    text = ', '.join(f'{name} {size / MIB:,.0f}' for name, size in parts.items())
    limit = _memory_limit(devices)
    fits = limit is None or memory.total_bytes <= limit
    of_limit = f' of {limit / MIB:,.0f}' if limit else ''
    text = f'memory per device: {memory.total_bytes / MIB:,.0f} MiB{of_limit} ({text})'
    yield fits, text if fits else f'{text}\n{ahead_of_time.CURE}'
    if needs.flops:
        yield True, _describe_flops(config, devices, needs)
    lines = collectives.table(needs.collectives)
    yield True, 'collectives of a step, per device:' + ('\n'.join(['', *lines]) if lines else ' none')
    if needs.between_slices:
        lines = collectives.table(needs.between_slices)
        kind = devices[0].device_kind
        seconds = roofline.network_seconds(needs.between_slices, kind, len(mesh.by_slice(devices)))
        if seconds is not None:
            lines.append(f'predicted, not measured: {1000 * seconds:,.1f} ms at the published bandwidth')
        yield True, '\n'.join([f'{collectives.NETWORK_TITLE}:', *lines])


def _check_attention(config: ml_collections.ConfigDict) -> tuple[bool, str]:
    """Runs the attention kernel and the reference, and compares their results."""
    m, length = config.model, config_lib.row_length(config)
    shape = (m.attention_backend, length, m.num_heads, m.width // m.num_heads, m.dtype, m.num_kv_heads)
    try:
        found = attention_parity.errors(*shape)
        if m.local_window:
            local = attention_parity.errors(*shape, m.local_window)
            found |= {f'{name} of local layers': pair for name, pair in local.items()}
    except (RuntimeError, ValueError) as error:
        reason, _, _ = str(error).partition('\n')
        return False, (
            f'attention: {m.attention_backend} does not run on this machine: use model.attention_backend=xla\n{reason}'
        )
    text = ', '.join(f'{name} {ours:.1e} ({reference:.1e})' for name, (ours, reference) in found.items())
    text = f'attention: relative errors of {m.attention_backend}, and of xla in {m.dtype} (in parentheses): {text}'
    fine = attention_parity.agrees(found)
    return fine, text if fine else (
        f'{text}\nthe errors of {m.attention_backend} are too large: use model.attention_backend=xla'
    )


def _memory_limit(devices: list[jax.Device]) -> int | None:
    """Bytes of memory that one device has for a program; None where they are not known."""
    if devices[0].platform == 'cpu':
        return host_memory.usable_bytes() // len(devices)
    if limit := tpu_slices.memory_bytes(devices[0].device_kind):
        return limit
    return (devices[0].memory_stats() or {}).get('bytes_limit')


def _describe_flops(
    config: ml_collections.ConfigDict, devices: list[jax.Device], needs: ahead_of_time.Requirements
) -> str:
    needed = step_flops.step_flops(config) / len(devices)
    text = (
        f'matrix products: {needs.flops / 1e12:,.3f} TFLOP per device and step, {needs.flops / needed:.2f} times what '
        'the model needs'
    )
    if config.model.attention_backend != 'xla':
        text += ' (fused attention not counted)'
    peak = peaks.peak_flops_per_second(devices[0].device_kind, config.model.dtype)
    return text + (f'; {1000 * needed / peak:,.1f} ms at the published peak' if peak else '')


def main() -> None:
    """Prints the result of each check, and exits with 1 when one of them fails."""
    values, config, all_fine = flags.FLAGS, command_line.configuration(), True
    try:
        workdir = buckets.path(values.workdir).expanduser()
        for fine, text in examine(config, values.topology, workdir, values.verify):
            print('✓' if fine else '✗', text.replace('\n', '\n  '), flush=True)
            all_fine = all_fine and fine
    except ValueError as error:  # raised for an unknown topology
        sys.exit(f'error: {error}')
    sys.exit(0 if all_fine else 1)


if __name__ == '__main__':
    command_line.define_config_flags()
    flags.DEFINE_bool('verify', False, 'Compare the checksums of all prepared data: about a second for each GB.')
    flags.DEFINE_string(
        'topology', None, 'A TPU slice to compile for, such as v5e-16, v6e-256 or v5p-64; or several: 2xv5e-256.'
    )
    paths.define_flag(
        'workdir', 'runs', 'Directory into which the run would write: its disk must have space for checkpoints.',
        'directory',
    )  # fmt: skip
    command_line.run(main, required=('config',))
