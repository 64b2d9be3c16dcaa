"""Measures how fast a training step and its parts are: contestants take turns, round after round.

Synthetic rows need none of the libraries that read data, so these are imported only for prepared rows.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mlm_jax import config as config_lib
from mlm_jax.config import step_flops
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.synthetic import SyntheticRows
from mlm_jax.masking import tables
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.vocabulary import Vocabulary, standard_vocabulary
from mlm_jax.models.products import product
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.performance.memory import memory_of
from mlm_jax.training import build, moving_average, runtime
from mlm_jax.training.metrics import ProgressLine
from mlm_jax.training.state import TrainState, create_state
from mlm_jax.training.step import apply_gradients, draw_masks, jit_train_step


class Contestant(Protocol):
    """Anything whose steps are timed in turn with those of others.

    Attributes:
      name: its name in tables.
      flops_per_step: FLOPs that the model needs for these tokens.
      compile_seconds: the time of the preparation before the first step.
      seconds: for each round so far, the seconds of one step.
      cpu_seconds: for each round so far, the CPU seconds of one step, summed over all cores. A busy machine changes
        these less than `seconds`.
      parts: name of a part → the seconds of one step of this part, for each round so far, where parts are timed.
    """

    name: str
    flops_per_step: float
    compile_seconds: float
    seconds: list[float]
    cpu_seconds: list[float]
    parts: dict[str, list[float]]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the text in a step, whatever the objective makes of them."""

    @property
    def dtype(self) -> str:
        """The dtype of the operands of matrix products."""

    @property
    def num_devices(self) -> int:
        """The number of devices that compute the step."""

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of memory on one device; None where they are not known."""

    def run(self, num_steps: int) -> float:
        """Runs steps and returns the seconds of one step."""

    def run_parts(self, num_steps: int) -> None:
        """Times the parts of a step that it can time separately, and adds the times to `parts`."""


@dataclasses.dataclass
class TrainStep:
    """A compiled training step with its state: a Contestant.

    Attributes:
      config: the resolved configuration of the step.
      step: (state, tokens) → (state, metrics).
      masking: (tokens, step) → MaskedBatch: the first part of the step, compiled separately.
      optimizer: (state, gradients) → state: the last part of the step, compiled separately.
      gradients: an argument for `optimizer`.
      vocabulary: of the tokens.
      batches: step → tokens, where rows come from a prepared directory; otherwise None.
      parts: the parts are 'masking'; 'optimizer'; and for prepared rows 'input' (reading a batch while nothing else
        runs), 'fed' (a step with its batch from the input pipeline) and 'stall' (how long that step waited for it).
    """

    name: str
    config: ml_collections.ConfigDict
    flops_per_step: float
    compile_seconds: float
    step: jax.stages.Compiled
    masking: jax.stages.Compiled
    optimizer: jax.stages.Compiled
    state: TrainState
    tokens: jax.Array
    gradients: Any
    mesh: jax.sharding.Mesh
    vocabulary: Vocabulary
    batches: Callable[[int], jax.Array] | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    parts: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the text in a step."""
        return self.config.batch_size * self.config.sequence_length

    @property
    def dtype(self) -> str:
        """The dtype of the operands of matrix products."""
        return self.config.model.dtype

    @property
    def num_devices(self) -> int:
        """The number of devices that compute the step."""
        return self.mesh.size

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of the state, the batch, temporaries and the program on one device, as the compiler reports them."""
        memory = memory_of(self.step)
        return None if memory is None else memory.total_bytes

    def run(self, num_steps: int) -> float:
        """Runs steps on the same batch and returns the seconds of one step."""
        return self._timed(lambda _: self.tokens, num_steps)

    def run_parts(self, num_steps: int) -> None:
        """Times the masking, the optimizer and the input pipeline separately."""
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
            self._run_pipeline(self.batches, num_steps)

    def flops_within_documents(self) -> float:
        """What `flops_per_step` would be if attention computed only the pairs of tokens in the same document."""
        share = step_flops.document_share(jax.device_get(segment_ids(self.tokens, self.vocabulary)))
        return step_flops.step_flops(self.config, document_share=share)

    def masked_batch(self) -> MaskedBatch:
        """The tokens with the masks that the next step would draw, in the memory of the host."""
        return jax.device_get(self.masking(self.tokens, self.state.step))

    def _run_pipeline(self, batches: Callable[[int], jax.Array], num_steps: int) -> None:
        first = len(self.parts.get('fed', ())) * 2 * num_steps
        start = time.perf_counter()
        for number in range(first, first + num_steps):
            batch = batches(number)
        jax.block_until_ready(batch)
        self._note('input', (time.perf_counter() - start) / num_steps)
        # The next batch is read while a step runs. The first step waits until its batch is read, and does not count.
        from mlm_jax.performance import prepared_rows  # here, because synthetic rows need no libraries that read data

        prefetcher = prepared_rows.Prefetcher(batches, first + num_steps, first + 2 * num_steps + 1, size=1)
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
    """Compiles the step of a configuration, and creates its state on the mesh.

    Args:
      name: the name in tables.
      config: the configuration; None loads the configuration that `name`, FILE.py:ARGUMENT, names.
      rows: a directory that the program `prepare` wrote; None generates synthetic rows.

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
        from mlm_jax.performance import prepared_rows  # here for the same reason as above

        vocabulary, run, batches = prepared_rows.from_directory(config, sharding)
        tokens = batches(0)
    else:
        vocabulary, batches = standard_vocabulary(config.vocab_size), None
        run = build.make_run(config, vocabulary, config.batch_size, tables.stand_in(vocabulary))
        made_up = SyntheticRows(config.batch_size, config.sequence_length, vocabulary)
        tokens = jax.device_put(made_up.read(np.arange(config.batch_size)), sharding)
    with jax.set_mesh(mesh):
        state = create_state(run.init, mesh, config.sharding)
        start = time.perf_counter()
        step = jit_train_step(run.train_step, state, mesh).lower(state, tokens).compile()
        compile_seconds = time.perf_counter() - start

        def mask(tokens_BxT: jax.Array, step: jax.Array) -> MaskedBatch:
            return draw_masks(run.masking, config.seed, step, tokens_BxT)[0]

        def optimize(state: TrainState, gradients: Any) -> TrainState:
            params, opt_state, _, finite = apply_gradients(run.optimizer, state, gradients, jnp.zeros([]), jnp.ones([]))
            decay = config.ema.decay
            ema = moving_average.updated(state.ema, params, finite, state.step, decay) if decay else None
            return TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)

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
    """One large matrix product on one device, as an upper bound for the FLOP/s of a step. A Contestant."""

    tokens_per_step, num_devices = 0, 1
    memory_bytes: int | None = None

    def __init__(self, dtype: str):
        """Compiles the product.

        Args:
          dtype: of the operands and the result; sums are computed in float32, as in the models.
        """
        size = 2048 if jax.default_backend() == 'cpu' else 8192
        self.name, self.flops_per_step = f'one matmul of {size}³ in {dtype}', 2.0 * size**3
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
        """Computes products and returns the seconds of one product."""
        start = time.perf_counter()
        for _ in range(num_steps):
            result = self._product(self._operand, self._operand)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / num_steps

    def run_parts(self, num_steps: int) -> None:
        """Does nothing: a product has no parts."""

    @property
    def tflops_per_second(self) -> float:
        """The median of the TFLOP/s over the rounds so far."""
        return self.flops_per_step / float(np.median(self.seconds)) / 1e12


def measure(
    contestants: Sequence[Contestant],
    rounds: int,
    steps_per_round: int,
    parts: bool = False,
    progress: ProgressLine | None = None,
) -> None:
    """Times every contestant once in every round. Before the first round, each runs one step that is not timed.

    Args:
      contestants: in the order in which they take turns.
      rounds: the number of rounds.
      steps_per_round: the number of steps of each contestant in a round.
      parts: whether the parts of the steps are timed, too.
      progress: a progress line that is updated after each round.
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
