"""Compares tiny runs on other numbers of processes and devices with runs on one: writes the data in this directory.

    python docs/results/same_losses/measure.py --work=runs/same_losses

Every case is a run of `train`, by real processes on this machine (gloo), each with some fake CPU devices. One process
with one device is the reference. Compared are all losses, of training and of held-out rows, and the bits of all masks.
A case that is in --work already is not run again, so that the program can be stopped and started again at any time;
--seconds lets it stop by itself, and it writes the data when no case is left. All cases take about half an hour.
Then: python docs/results/make.py
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax import train as train_lib
from mlm_jax.comparing import experiment, measured
from mlm_jax.comparing.experiment import Column, Experiment, Row, Table
from mlm_jax.config import command_line
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import packing, prepared_data, shards
from mlm_jax.data.rows import Batches
from mlm_jax.files import atomic, directory_lock, paths
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.training import build, runtime
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.step import draw_masks

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
LENGTH, VOCABULARY, BATCH, STEPS, SEED = 32, 256, 64, 6, 1
TOLERANCE = 1e-5
# The same arithmetic, compiled in a third of the time.
QUICK_COMPILATION = '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
CASES_AT_ONCE = 2  # of one start of processes
CONFIGURATIONS = {
    'MLM': 'mlm:tiny',
    'MAE-LM': 'mae_lm:tiny',
    'ExLM': 'exlm:tiny',
    'fully explored': 'masking:fully_explored,size=tiny',
}
SETTINGS = {
    'sequence_length': LENGTH, 'vocab_size': VOCABULARY, 'batch_size': BATCH, 'num_microbatches': 2,
    'total_steps': STEPS, 'model.num_layers': 2, 'model.width': 64, 'model.num_heads': 2, 'model.ffn_width': 128,
    'model.scan_unroll': 1, 'model.dropout': 0.1, 'model.attention_dropout': 0.1, 'mae_lm.decoder_layers': 2,
    'optimizer.learning_rate': 2e-3, 'schedule.warmup_steps': 2, 'evaluation.rows': 48,
    'evaluation.every_steps': STEPS // 2, 'logging.every_steps': 1, 'checkpoint.every_steps': 0,
    'compilation_cache': '', 'seed': SEED,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Machines:
    """What a run has.

    Attributes:
      processes: their number.
      devices: the devices of each process.
      slices: the number of fake slices of TPUs that share the devices.
    """

    processes: int
    devices: int
    slices: int = 1

    @property
    def name(self) -> str:
        """In tables and names of files."""
        slices = f', {self.slices} slices' if self.slices > 1 else ''
        return f'{self.processes} × {self.devices}{slices}'

    @property
    def total(self) -> int:
        """The number of devices of all processes."""
        return self.processes * self.devices

    def slice_of(self, device: jax.Device) -> int:
        """The fake slice of a device: that of its process, or of every other device of a single process."""
        return (device.process_index if self.processes > 1 else device.id) % self.slices


ALONE = Machines(1, 1)
# 1, 2 and 8 devices in total, of 1, 2 and 4 processes; and two slices of four devices.
MACHINES = (
    *(Machines(processes, total // processes) for processes in (1, 2, 4) for total in (1, 2, 8) if total >= processes),
    Machines(1, 8, 2),
    Machines(2, 4, 2),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
      machines: what it has.
      layout: a key of `layouts`.
      configuration: a key of CONFIGURATIONS.
    """

    machines: Machines
    layout: str
    configuration: str

    def result(self, work: pathlib.Path) -> pathlib.Path:
        """The file of its result."""
        name = f'{self.machines.name}, {self.layout}, {self.configuration}.json'
        return work / 'results' / name.replace(' × ', 'x').replace(', ', '-').replace(' ', '_')


def layouts(total: int) -> dict[str, dict[str, object]]:
    """Name → settings of the sharding, for that many devices: `data` has what `fsdp` and `tensor` leave."""
    fsdp = {'sharding': 'fsdp', 'mesh.fsdp': min(4, total)}
    found: dict[str, dict[str, object]] = {'dp': {'sharding': 'dp'}}
    if total > 1:
        found['fsdp'] = fsdp | {'fsdp_gather': 'step'}
        found['fsdp by layer'] = fsdp | {'fsdp_gather': 'layer'}
        found['fsdp_tp'] = {'sharding': 'fsdp_tp', 'mesh.fsdp': 2 if total > 2 else 1, 'mesh.tensor': 2}
    return found


def cases() -> list[Case]:
    """All, the references first."""
    found = [
        Case(machines, layout, name)
        for machines in MACHINES
        for layout in layouts(machines.total)
        for name in CONFIGURATIONS
    ]
    return [case for case in found if case.layout != 'fsdp by layer' or case.configuration == 'MLM']


# ---- On the processes of a case --------------------------------------------------------------------------------------


def run_cases(machines: Machines, some: Sequence[Case], work: pathlib.Path) -> None:
    """Runs cases, as one of their processes; the first process stores the results."""
    if machines.slices > 1:
        mesh_lib.slice_of = machines.slice_of
        assert len(mesh_lib.by_slice(jax.devices())) == machines.slices
    assert (jax.process_count(), jax.device_count()) == (machines.processes, machines.total)
    for case in some:
        workdir = work / 'run'
        config = configured(case, work)
        train_lib.train(config, workdir)
        masks = masks_of(config)
        if jax.process_index() == 0:
            lines = read_metrics(workdir / 'metrics.jsonl')
            losses = {name: [line[name] for line in lines if name in line] for name in ('train/loss', 'eval/loss')}
            assert [len(values) for values in losses.values()] == [STEPS, 3]
            shutil.rmtree(workdir)
            atomic.write_bytes(case.result(work), json.dumps({'losses': losses, 'masks': masks}).encode())
        runtime.gather(np.zeros(1))  # before another run has the same workdir


def configured(case: Case, work: pathlib.Path) -> ml_collections.ConfigDict:
    """The configuration of a case."""
    settings = SETTINGS | layouts(case.machines.total)[case.layout] | {'data.directory': work / 'rows'}
    return config_lib.load(CONFIGURATIONS[case.configuration], {key: str(value) for key, value in settings.items()})


def masks_of(config: ml_collections.ConfigDict) -> str:
    """The SHA-256 checksum of the masked batches of all steps, drawn on the mesh of the run."""
    config, data = prepared_data.resolve(config)
    run = build.make_run(config, data.vocabulary, data.rows_between_visits, data.tables(config.masking))
    mesh, digest = runtime.make_mesh(config), hashlib.sha256()
    batches = Batches(data.training_rows(), data.order(config), BATCH, mesh_lib.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        draw = jax.jit(
            lambda tokens, step: draw_masks(run.masking, SEED, step, tokens)[0], out_shardings=mesh_lib.replicated(mesh)
        )
        for step in range(STEPS):
            for array in jax.tree.leaves(draw(batches(step), np.int32(step))):
                digest.update(np.asarray(array.addressable_data(0)).tobytes())
    return digest.hexdigest()


# ---- Around them -----------------------------------------------------------------------------------------------------


def write_rows(directory: pathlib.Path) -> None:
    """A directory as `prepare` leaves it, with documents that count upwards, and no tokenizer."""
    vocabulary, rng, splits = standard_vocabulary(VOCABULARY), np.random.default_rng(SEED), {}
    ordinary = VOCABULARY - 5
    for split, count in {'train': 600, 'validation': 120}.items():
        documents = [
            ((rng.integers(ordinary) + np.arange(rng.integers(4, 2 * LENGTH))) % ordinary + 5).astype(np.int32)
            for _ in range(count)
        ]
        rows = packing.pack(documents, LENGTH, vocabulary, 'documents', np.uint16)
        shards.write_rows(directory / (name := shards.shard_name(split, 0, 1)), rows)
        tokens = sum(map(len, documents))
        splits[split] = manifest_lib.Split(
            len(rows), int((rows != vocabulary.pad_id).sum()), tokens, count, 0, 0, float(np.log(ordinary)), {},
            (manifest_lib.Shard(name, len(rows), ''),),
        )  # fmt: skip
    (directory / 'tokenizer.model').write_bytes(b'')
    manifest_lib.save(
        manifest_lib.Manifest(
            {}, {}, vocabulary, 'tokenizer.model', '', LENGTH, 'documents', 'uint16', splits, versions={}
        ),
        directory,
    )


def start(machines: Machines, some: Sequence[Case], work: pathlib.Path) -> None:
    """Starts the processes of cases, and waits for them.

    Raises:
      ConfigError: where one of them fails, with the end of its output.
    """
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    shutil.rmtree(work / 'run', ignore_errors=True)
    command = [
        sys.executable,
        __file__,
        f'--work={work}',
        '--part=' + json.dumps([cases().index(case) for case in some]),
    ]
    if machines.processes > 1:
        command += [f'--coordinator_address=localhost:{port}', f'--num_processes={machines.processes}']
    environment = {
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(REPOSITORY),
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={machines.devices} {QUICK_COMPILATION}',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    }  # fmt: skip
    logs = [work / f'process{i}.log' for i in range(machines.processes)]
    processes = []
    for i, log in enumerate(logs):
        number = [f'--process_id={i}'] if machines.processes > 1 else []
        with log.open('w') as output:
            processes.append(subprocess.Popen([*command, *number], env=environment, stdout=output, stderr=output))
    codes = [process.wait() for process in processes]
    for code, log in zip(codes, logs, strict=True):
        if code:
            raise ConfigError(f'{machines.name}: {log}\n' + '\n'.join(log.read_text().splitlines()[-20:]))


def differences(work: pathlib.Path) -> tuple[Table, float]:
    """The table of the largest relative differences of losses, and the largest of all.

    Raises:
      ConfigError: where masks differ, or losses by more than TOLERANCE.
    """
    results = {case: json.loads(case.result(work).read_bytes()) for case in cases()}
    rows, largest = [], 0.0
    for machines in MACHINES:
        for layout, settings in layouts(machines.total).items():
            if machines == ALONE:
                continue
            values: list[float | None] = []
            for name in CONFIGURATIONS:
                found, expected = results.get(Case(machines, layout, name)), results[Case(ALONE, 'dp', name)]
                values.append(None if found is None else difference(found['losses'], expected['losses']))
                if found and (found['masks'] != expected['masks'] or values[-1] > TOLERANCE):
                    raise ConfigError(
                        f'{machines.name}, {layout}, {name}: losses differ by {values[-1]:.1e}, or masks do'
                    )
            largest = max(largest, *(value for value in values if value is not None))
            fsdp, tensor = settings.get('mesh.fsdp', 1), settings.get('mesh.tensor', 1)
            mesh = f'{machines.total // (fsdp * tensor)} · {fsdp} · {tensor}'
            rows.append(Row(f'{machines.name}: {layout}, {mesh}', tuple(values)))
    title = (
        'The largest relative difference of a loss from one process with one device. Rows: processes × devices of each '
        'process, then the sharding, and the sizes of `data`, `fsdp` and `tensor`. Masks are the same bits in all.'
    )
    return Table('losses', title, tuple(Column(name, format='.1e') for name in CONFIGURATIONS), tuple(rows)), largest


def difference(found: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """The largest relative difference of two runs' losses."""
    pairs = [pair for name in expected for pair in zip(found[name], expected[name], strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def run_missing(work: pathlib.Path, seconds: float) -> bool:
    """Runs the cases that have no result yet; returns whether all have one, or False when the time is over."""
    if not (work / 'rows').exists():
        (work / 'rows.new').mkdir(exist_ok=True)
        write_rows(work / 'rows.new')
        (work / 'rows.new').rename(work / 'rows')
    (work / 'results').mkdir(exist_ok=True)
    everything, end = cases(), time.monotonic() + seconds
    for machines in MACHINES:
        missing = [case for case in everything if case.machines == machines and not case.result(work).exists()]
        for first in range(0, len(missing), CASES_AT_ONCE):
            if time.monotonic() > end:
                left = sum(not case.result(work).exists() for case in everything)
                print(f'{left} of {len(everything)} cases are left: the same command goes on with them')
                return False
            some, began = missing[first : first + CASES_AT_ONCE], time.monotonic()
            start(machines, some, work)
            print(f'{machines.name}: {len(some)} cases in {time.monotonic() - began:.0f} s', flush=True)
    return True


def described(table: Table, largest: float) -> Experiment:
    """The experiment, with this table and its largest number; the rest is of this process."""
    return Experiment(
        title='The same losses on any number of processes and devices',
        question='Does a run compute the same, however many processes and devices share it?',
        commands=('python docs/results/same_losses/measure.py --work=runs/same_losses',),
        needs='two minutes',
        settings={
            'runs': f'{STEPS} steps of 2×64, float32, dropout 0.1, batches of {BATCH} × {LENGTH} tokens in two '
            'microbatches; held-out losses at the beginning, in the middle and at the end',
            'processes': 'real ones, which exchange data by gloo; devices are fake and share the cores. Slices '
            'are fake, too: every other device, or those of a process',
            'compiler': 'most optimizations are off, which does not change the arithmetic',
        },
        notes=f'It does: in {len(cases())} runs, masks are the same bits, and losses differ by at most {largest:.1e} '
        'of their value, as sums in another order differ in float32.',
        not_run='More than one machine; TPUs and GPUs; bfloat16.',
        tables=(table,),
        seeds=(SEED,),
        **measured.of_this_process(),
    )


def main() -> None:
    """Runs the cases that are left, and writes the experiment."""
    values, everything = flags.FLAGS, cases()
    work = pathlib.Path(values.work).resolve()
    if values.part:
        some = [everything[index] for index in json.loads(values.part)]
        with runtime.distributed(values):
            run_cases(some[0].machines, some, work)
        return
    with directory_lock.sole_writer(work):
        if not run_missing(work, values.seconds):
            return
        table, largest = differences(work)
    experiment.write(experiment.with_words_of(described(table, largest), HERE), HERE)
    print(HERE / experiment.METRICS)


if __name__ == '__main__':
    runtime.define_distributed_flags()
    flags.adopt_module_key_flags(runtime)
    paths.define_flag('work', None, 'A directory for rows and results of cases.', 'directory')
    flags.DEFINE_float('seconds', float('inf'), 'No further case starts after so many seconds.')
    flags.DEFINE_string('part', '', 'Set by this program for the processes that it starts: which cases to run.')
    command_line.run(main, required=('work',))
