"""Predicts steps on two slices of TPUs that a data-center network joins: writes the table `slices` in this directory.

    python docs/results/tpu_predicted/several_slices.py --work=runs/several_slices

Each step is compiled for slices that are not here (extra `tpu`), and nothing is measured. What is in --work already is
not compiled again; all of it takes some minutes. Then: python docs/results/make.py
"""

import dataclasses
import json
import pathlib
import time

from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.comparing import experiment, measured
from mlm_jax.comparing.experiment import Column, Row, Table
from mlm_jax.config import command_line
from mlm_jax.files import atomic, paths
from mlm_jax.parallel import topology
from mlm_jax.performance import ahead_of_time, prediction

HERE = pathlib.Path(__file__).resolve().parent
MAE_LM = 'mae_lm:base,model.relative_buckets=0'
# Name → slices and configuration.
STEPS = {
    '2 × v5e-16, MLM base': ('2xv5e-16', 'mlm:base'),
    '2 × v5e-16, MAE-LM base, no relative bias': ('2xv5e-16', MAE_LM),
    '2 × v5e-16, ExLM base': ('2xv5e-16', 'exlm:base'),
    '2 × v5e-16, MLM large': ('2xv5e-16', 'mlm:large'),
    '2 × v5e-256, MLM base': ('2xv5e-256', 'mlm:base'),
    '2 × v5e-256, MLM large': ('2xv5e-256', 'mlm:large'),
    '2 × v6e-256, MLM large': ('2xv6e-256', 'mlm:large'),
    '2 × v5p-64, MLM large': ('2xv5p-64', 'mlm:large'),
}
TITLE = (
    'Two slices, per device and step, with the batches of one (commit {commit}). The network is that of the data '
    'center, between the slices: the step is shorter if it overlaps with all else, and longer if nothing overlaps.'
)
COLUMNS = (
    Column('microbatches'), Column('memory', 'MiB', ',.0f'), Column('sent to the other slice', 'MB', ',.1f'),
    Column('products', 'ms', ',.1f'), Column('bytes', 'ms', ',.1f'), Column('links', 'ms', ',.1f'),
    Column('network', 'ms', ',.1f'), Column('step', 'ms', ',.0f'), Column('MFU', '%', ',.0f'),
)  # fmt: skip


def predicted(slices: str, name: str) -> dict:
    """The line of `prediction.predict`, with the number of microbatches, and the commit."""
    config = config_lib.load(f'{name},slice={slices}')
    line = prediction.predict(name, config, topology.tpu_devices(slices), ahead_of_time.LOW_EFFORT)
    microbatches, commit = config_lib.resolve(config).num_microbatches, measured.of_this_process()['commit']
    return line | {'microbatches': microbatches, 'commit': commit}


def row(name: str, line: dict) -> Row:
    """The row of a prediction."""
    p, sent = line['prediction'], sum(size for _, size in line['between_slices'].values())
    times = (p[key] for key in ('product_ms', 'memory_ms', 'link_ms', 'network_ms'))
    step, mfu = dict(zip(('low', 'high'), p['step_ms'])), dict(zip(('low', 'high'), (100 * x for x in p['mfu'])))
    return Row(name, (line['microbatches'], line['memory_bytes'] / 2**20, sent / 1e6, *times, step, mfu))


def main() -> None:
    """Predicts what is missing, and writes the table when all is there."""
    work, end = pathlib.Path(flags.FLAGS.work), time.monotonic() + flags.FLAGS.seconds
    work.mkdir(parents=True, exist_ok=True)
    lines = {}
    for name, (slices, config) in STEPS.items():
        stored = work / f'{slices}-{config.replace(":", "-")}.json'
        if not stored.exists():
            if time.monotonic() > end:
                print(f'{name} and what follows is left: the same command goes on with it')
                return
            atomic.write_bytes(stored, json.dumps(predicted(slices, config)).encode())
        lines[name] = json.loads(stored.read_bytes())
        print(name, lines[name]['prediction'], flush=True)
    title = TITLE.format(commit=' and '.join(sorted({line['commit'] or 'not known' for line in lines.values()})))
    table = Table('slices', title, COLUMNS, tuple(row(name, line) for name, line in lines.items()))
    made = experiment.read(HERE)
    others = tuple(other for other in made.tables if other.name != table.name)
    experiment.write(dataclasses.replace(made, tables=(*others, table)), HERE)


if __name__ == '__main__':
    paths.define_flag('work', None, 'A directory for what is predicted.', 'directory')
    flags.DEFINE_float('seconds', float('inf'), 'No further step is compiled after so many seconds.')
    command_line.run(main, required=('work',))
