"""Measures the speed of training steps, several configurations interleaved in one run.

    python -m mlm_jax.bench --config=configs/mlm.py:mini --config=configs/mae_lm.py:mini

Synthetic rows; no data stack is imported. Each round takes the configurations in turn, so that what else the machine
does falls on all of them alike; figures are medians over rounds, and medians of ratios to the first configuration.
Masking alone, compiled apart and timed in the same rounds, is given as a share of the step that contains it.
"""

import dataclasses
import json
import pathlib
import time

import jax
import ml_collections
import numpy as np
from absl import flags

from mlm_jax import command_line, config_check
from mlm_jax import config as config_lib
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.synthetic import SyntheticRows
from mlm_jax.masking import tables
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.training import build, flops, runtime
from mlm_jax.training.state import create_state
from mlm_jax.training.step import MASK_STREAM, jit_train_step, stream_key


@dataclasses.dataclass
class Contestant:
    """A compiled training step with its state.

    Attributes:
      name: as on the command line.
      tokens_per_step: source tokens, whatever the objective makes of them.
      flops_per_step: of its matmuls.
      compile_seconds: what compiling took.
      masking: the compiled masking of the batch alone.
      seconds: of each round so far, for one step; `masking_seconds`, for masking alone.
    """

    name: str
    tokens_per_step: int
    flops_per_step: float
    compile_seconds: float
    step: jax.stages.Compiled
    masking: jax.stages.Compiled
    state: object
    tokens: jax.Array
    mesh: jax.sharding.Mesh
    seconds: list[float] = dataclasses.field(default_factory=list)
    masking_seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self, num_steps: int) -> float:
        """Runs steps and returns the seconds of one."""
        start = time.perf_counter()
        with jax.set_mesh(self.mesh):
            for _ in range(num_steps):
                self.state, metrics = self.step(self.state, self.tokens)
            jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - start) / num_steps

    def mask(self, num_steps: int) -> float:
        """Draws masks as often and returns the seconds of one draw."""
        start = time.perf_counter()
        for _ in range(num_steps):
            masks = self.masking(self.tokens, self.state.step)
        jax.block_until_ready(masks)
        return (time.perf_counter() - start) / num_steps


def prepare(name: str, config: ml_collections.ConfigDict | None = None) -> Contestant:
    """Compiles the step of `config`, or of what `name`, FILE.py:ARGUMENT, says, and creates its state on the mesh."""
    config = config_lib.load(name) if config is None else config
    config_check.check(config)
    vocabulary = standard_vocabulary(config.vocab_size)
    run = build.make_run(config, vocabulary, 1000.0, tables.stand_in(vocabulary))
    mesh = runtime.make_mesh(config)
    with jax.set_mesh(mesh):
        state = create_state(run.init, mesh, config.sharding)
        rows = SyntheticRows(config.batch_size, config.sequence_length, vocabulary)
        tokens = jax.device_put(rows.read(np.arange(config.batch_size)), mesh_lib.batch_sharding(mesh))
        start = time.perf_counter()
        step = jit_train_step(run.train_step, state, mesh).lower(state, tokens).compile()
        compile_seconds = time.perf_counter() - start

        def mask(tokens_BxT, step):
            key = stream_key(config.seed, MASK_STREAM, step)
            return run.masking(key, tokens_BxT, segment_ids(tokens_BxT, vocabulary), step)

        masking = jax.jit(mask).lower(tokens, state.step).compile()
    size = config.batch_size * config.sequence_length
    return Contestant(name, size, flops.step_flops(config), compile_seconds, step, masking, state, tokens, mesh)


def measure(contestants: list[Contestant], rounds: int, steps_per_round: int) -> None:
    """Times every contestant in every round, after one step each that does not count."""
    for contestant in contestants:
        contestant.run(1)
        contestant.mask(1)
    for _ in range(rounds):
        for contestant in contestants:
            contestant.seconds.append(contestant.run(steps_per_round))
            contestant.masking_seconds.append(contestant.mask(steps_per_round))


def report(contestants: list[Contestant]) -> list[dict]:
    """Medians, quartiles, rates, and ratios to the first contestant."""
    device = jax.devices()[0]
    peak = flops.peak_flops_per_second(device.device_kind)
    first, lines = contestants[0], []
    for c in contestants:
        low, median, high = np.percentile(c.seconds, [25, 50, 75])
        # Ratios round by round: both sides of a pair ran under the same load.
        ratio = float(np.median(np.array(c.seconds) / np.array(first.seconds)))
        line = {
            'config': c.name,
            'step_ms': 1000 * median,
            'step_ms_quartiles': [1000 * low, 1000 * high],
            'masking_ms': 1000 * float(np.median(c.masking_seconds)),
            'masking_share': float(np.median(np.array(c.masking_seconds) / np.array(c.seconds))),
            'tokens_per_second': c.tokens_per_step / median,
            'tflops_per_second': c.flops_per_step / median / 1e12,
            'compile_seconds': c.compile_seconds,
            'time_per_token_ratio': ratio * first.tokens_per_step / c.tokens_per_step,
            'flops_per_token_ratio': c.flops_per_step
            / c.tokens_per_step
            / first.flops_per_step
            * first.tokens_per_step,
            'device': device.device_kind,
            'num_devices': jax.device_count(),
        }
        if peak:
            line['mfu'] = c.flops_per_step / median / (peak * jax.device_count())
        lines.append(line)
    return lines


def main() -> None:
    """Prints a table, and writes JSON where asked."""
    contestants = []
    for name in flags.FLAGS.config:
        contestants.append(prepare(name))
        print(f'compiled {name} in {contestants[-1].compile_seconds:.1f} s')
    measure(contestants, flags.FLAGS.rounds, flags.FLAGS.steps)
    lines = report(contestants)
    titles = {
        'step ms': 9,
        'quartiles': 17,
        'tokens/s': 12,
        'TFLOP/s': 9,
        'masking': 9,
        'time ratio': 12,
        'FLOP ratio': 12,
    }
    print('\n' + ''.join(title.rjust(width) for title, width in titles.items()) + '  config')
    for line in lines:
        low, high = line['step_ms_quartiles']
        print(
            f'{line["step_ms"]:9.1f}{f"{low:.1f} … {high:.1f}":>17}{line["tokens_per_second"]:12,.0f}'
            f'{line["tflops_per_second"]:9.3f}{line["masking_share"]:9.2%}{line["time_per_token_ratio"]:12.3f}'
            f'{line["flops_per_token_ratio"]:12.3f}  {line["config"]}'
        )
    if flags.FLAGS.output:
        pathlib.Path(flags.FLAGS.output).expanduser().write_text(json.dumps(lines, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    flags.DEFINE_multi_string('config', None, 'FILE.py[:SIZE[,key=value…]]; several are measured in turn.')
    flags.DEFINE_integer('rounds', 10, 'Rounds; figures are medians over them.', lower_bound=1)
    flags.DEFINE_integer('steps', 2, 'Steps of each configuration in a round.', lower_bound=1)
    flags.DEFINE_string('output', None, 'File for the figures as JSON.')
    command_line.run(main, required=('config',))
