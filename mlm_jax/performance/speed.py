"""How fast a training step is, and its parts: contestants that take turns, and what is reported of them.

Synthetic rows need no data stack, and none is imported for them.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mlm_jax import config as config_lib
from mlm_jax.config import step_flops
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.synthetic import SyntheticRows
from mlm_jax.masking import tables
from mlm_jax.masking.vocabulary import Vocabulary, standard_vocabulary
from mlm_jax.models.products import product
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.performance.memory import memory_of
from mlm_jax.training import build, runtime
from mlm_jax.training.metrics import ProgressLine
from mlm_jax.training.state import create_state
from mlm_jax.training.step import MASK_STREAM, apply_gradients, jit_train_step, stream_key


class Contestant(Protocol):
    """Anything whose steps are timed in turn with others.

    Attributes:
      name: as tables show it.
      tokens_per_step: source tokens, whatever an objective makes of them.
      flops_per_step: that the model needs for them.
      compile_seconds: what came before the first step.
      dtype: of the matrix products.
      num_devices: at work.
      memory_bytes: of one device, where that is known.
      seconds: of one step, for each round so far.
      cpu_seconds: likewise, of all cores together: what a busy machine changes least.
      parts: name → seconds of one step, likewise, of what is timed apart from the whole.
    """

    name: str
    tokens_per_step: int
    flops_per_step: float
    compile_seconds: float
    dtype: str
    num_devices: int
    memory_bytes: int | None
    seconds: list[float]
    cpu_seconds: list[float]
    parts: dict[str, list[float]]

    def run(self, num_steps: int) -> float:
        """Runs steps and returns the seconds of one."""

    def run_parts(self, num_steps: int) -> None:
        """Times what it can time apart from the whole step, and remembers it."""


@dataclasses.dataclass
class TrainStep:
    """A compiled training step with its state: a Contestant.

    Attributes:
      config: of the step.
      step: (state, tokens) → (state, metrics).
      masking: (tokens, step) → MaskedBatch: what the step does first, alone.
      optimizer: (state, gradients) → state: what it does last, alone.
      gradients: for `optimizer`.
      vocabulary: of the tokens.
      batches: step → tokens, where rows come from a prepared directory.
      parts: name → seconds of one step, for each round so far: 'masking', 'optimizer', 'input' (a batch, read by
        nobody else), 'fed' (a step from the input pipeline), 'stall' (how long that step waited for its batch).
    """

    name: str
    config: ml_collections.ConfigDict
    flops_per_step: float
    compile_seconds: float
    step: jax.stages.Compiled
    masking: jax.stages.Compiled
    optimizer: jax.stages.Compiled
    state: object
    tokens: jax.Array
    gradients: dict
    mesh: jax.sharding.Mesh
    vocabulary: Vocabulary
    batches: Callable[[int], jax.Array] | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    parts: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def tokens_per_step(self) -> int:
        """Source tokens."""
        return self.config.batch_size * self.config.sequence_length

    @property
    def dtype(self) -> str:
        """Of the matrix products."""
        return self.config.model.dtype

    @property
    def num_devices(self) -> int:
        """At work."""
        return self.mesh.size

    @property
    def memory_bytes(self) -> int | None:
        """State, batch, temporaries and program on one device, by the compiler."""
        memory = memory_of(self.step)
        return memory and memory.total_bytes

    def run(self, num_steps: int) -> float:
        """Runs steps on the same batch and returns the seconds of one."""
        return self._timed(lambda _: self.tokens, num_steps)

    def run_parts(self, num_steps: int) -> None:
        """Times masking, optimizer and input pipeline apart."""
        start = time.perf_counter()
        for _ in range(num_steps):
            masks = self.masking(self.tokens, self.state.step)
        jax.block_until_ready(masks)
        self._note('masking', (time.perf_counter() - start) / num_steps)
        start = time.perf_counter()
        for _ in range(num_steps):
            self.state = self.optimizer(self.state, self.gradients)
        jax.block_until_ready(self.state)
        self._note('optimizer', (time.perf_counter() - start) / num_steps)
        if self.batches:
            self._run_pipeline(num_steps)

    def flops_within_documents(self) -> float:
        """What `flops_per_step` would be if attention left out what documents do not see of each other."""
        share = step_flops.document_share(jax.device_get(segment_ids(self.tokens, self.vocabulary)))
        return step_flops.step_flops(self.config, document_share=share)

    def masked_batch(self):
        """The MaskedBatch of the tokens, as the next step would draw it, in the memory of the host."""
        return jax.device_get(self.masking(self.tokens, self.state.step))

    def _run_pipeline(self, num_steps: int) -> None:
        first = len(self.parts.get('fed', ())) * 2 * num_steps
        start = time.perf_counter()
        for number in range(first, first + num_steps):
            batch = self.batches(number)
        jax.block_until_ready(batch)
        self._note('input', (time.perf_counter() - start) / num_steps)
        # The next batch is read while a step runs; the first step, which waits for all of its own, does not count.
        from mlm_jax.performance import prepared_rows  # here: rows that are made up need none of the data stack

        prefetcher = prepared_rows.Prefetcher(self.batches, first + num_steps, first + 2 * num_steps + 1, size=1)
        try:
            self._timed(lambda _: next(prefetcher), 1)
            before = prefetcher.stall_seconds
            self._note('fed', self._timed(lambda _: next(prefetcher), num_steps))
            self._note('stall', (prefetcher.stall_seconds - before) / num_steps)
        finally:
            prefetcher.close()

    def _timed(self, tokens: Callable[[int], jax.Array], num_steps: int) -> float:
        start = time.perf_counter()
        with jax.set_mesh(self.mesh):
            for number in range(num_steps):
                self.state, metrics = self.step(self.state, tokens(number))
            jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - start) / num_steps

    def _note(self, part: str, seconds: float) -> None:
        self.parts.setdefault(part, []).append(seconds)


def prepare(
    name: str, config: ml_collections.ConfigDict | None = None, rows: str | pathlib.Path | None = None
) -> TrainStep:
    """Compiles the step of `config`, or of what `name`, FILE.py:ARGUMENT, says, and creates its state on the mesh.

    Args:
      name: as tables show it.
      config: None loads what `name` says.
      rows: a directory that `prepare` wrote; None makes rows up.

    Raises:
      ConfigError: for a configuration that cannot run here, or does not fit the rows.
    """
    config = config_lib.load(name) if config is None else config
    if rows:
        config.data.directory = str(rows)
    config = config_lib.resolve(config)
    mesh = runtime.make_mesh(config)
    sharding = mesh_lib.batch_sharding(mesh)
    if rows:
        from mlm_jax.performance import prepared_rows  # as above

        vocabulary, run, batches = prepared_rows.from_directory(config, sharding)
        tokens = batches(0)
    else:
        vocabulary, batches = standard_vocabulary(config.vocab_size), None
        run = build.make_run(config, vocabulary, 1000.0, tables.stand_in(vocabulary))
        made_up = SyntheticRows(config.batch_size, config.sequence_length, vocabulary)
        tokens = jax.device_put(made_up.read(np.arange(config.batch_size)), sharding)
    with jax.set_mesh(mesh):
        state = create_state(run.init, mesh, config.sharding)
        start = time.perf_counter()
        step = jit_train_step(run.train_step, state, mesh).lower(state, tokens).compile()
        compile_seconds = time.perf_counter() - start

        def mask(tokens_BxT, step):
            key = stream_key(config.seed, MASK_STREAM, step)
            return run.masking(key, tokens_BxT, segment_ids(tokens_BxT, vocabulary), step)

        def optimize(state, gradients):
            params, opt_state, _, _ = apply_gradients(run.optimizer, state, gradients, jnp.zeros([]), jnp.ones([]))
            return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

        layout = jax.tree.map(lambda x: x.sharding, state)
        gradients = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params), out_shardings=layout.params)(
            state.params
        )
        optimizer = jax.jit(optimize, donate_argnums=0, out_shardings=layout).lower(state, gradients).compile()
        masking = jax.jit(mask).lower(tokens, state.step).compile()
    return TrainStep(
        name, config, step_flops.step_flops(config), compile_seconds, step, masking, optimizer, state, tokens,
        gradients, mesh, vocabulary, batches,
    )  # fmt: skip


class LargeMatmul:
    """One large matrix product on one device: what a step could attain if it were nothing else. A Contestant."""

    num_devices, memory_bytes = 1, None

    def __init__(self, dtype: str):
        """`dtype`: of its operands and its result; summed in float32, as in the models."""
        size = 2048 if jax.default_backend() == 'cpu' else 8192
        self.name, self.tokens_per_step, self.flops_per_step = f'one matmul of {size}³ in {dtype}', 0, 2.0 * size**3
        self.dtype = dtype
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.parts: dict[str, list[float]] = {}
        start = time.perf_counter()
        self._operand = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
        multiply = jax.jit(functools.partial(product, 'ab,bc->ac'))
        self._product = multiply.lower(self._operand, self._operand).compile()
        self.compile_seconds = time.perf_counter() - start

    def run(self, num_steps: int) -> float:
        """Seconds of one product."""
        start = time.perf_counter()
        for _ in range(num_steps):
            result = self._product(self._operand, self._operand)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / num_steps

    def run_parts(self, num_steps: int) -> None:
        """It has none."""

    @property
    def tflops_per_second(self) -> float:
        """The median over the rounds so far."""
        return self.flops_per_step / float(np.median(self.seconds)) / 1e12


def measure(
    contestants: Sequence[Contestant],
    rounds: int,
    steps_per_round: int,
    parts: bool = False,
    progress: ProgressLine | None = None,
) -> None:
    """Times every contestant in every round, after one step each that does not count.

    Args:
      contestants: in the order in which they take turns.
      rounds: how many turns each has.
      steps_per_round: steps of a turn.
      parts: whether their parts are timed too.
      progress: is shown after each round.
    """
    for contestant in contestants:
        contestant.run(1)
        if parts:
            contestant.run_parts(1)
            contestant.parts.clear()
    start = time.perf_counter()
    for number in range(1, rounds + 1):
        for contestant in contestants:
            before = time.process_time()
            contestant.seconds.append(contestant.run(steps_per_round))
            contestant.cpu_seconds.append((time.process_time() - before) / steps_per_round)
            if parts:
                contestant.run_parts(steps_per_round)
        if progress:
            progress.show(number, '', (time.perf_counter() - start) / number)
