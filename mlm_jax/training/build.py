"""From a configuration to the parts of a run: objective, masking, optimizer."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
import optax

from mlm_jax import config as config_lib
from mlm_jax.masking.fully_explored import FullyExplored
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.schedules import RatioSchedule
from mlm_jax.masking.tables import Tables
from mlm_jax.masking.vocabulary import Vocabulary, standard_vocabulary
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.training.optimizers import make_optimizer
from mlm_jax.training.schedules import make_schedule
from mlm_jax.training.state import TrainState, make_init
from mlm_jax.training.step import make_eval_step, make_train_step

# Keys of `config.masking` that are attributes of Masking as they stand.
_PLAIN_MASKING_KEYS = (
    'strategy', 'ratio', 'mask_fraction', 'random_fraction', 'unit', 'predicted_fraction', 'corruption_unit',
    'repeats', 'static_masks',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """The pure functions and the durations of a run, all decided by its configuration.

    Attributes:
      objective: the Linen module.
      masking: of the training.
      total_steps: the length of the run.
      optimizer: of the mean gradient.
      learning_rate: update → learning rate.
      init: () → TrainState.
      train_step: (state, tokens) → (state, metrics).
      eval_step: (params, tokens, first row) → metrics.
    """

    objective: object
    masking: Masking
    total_steps: int
    optimizer: optax.GradientTransformation
    learning_rate: Callable
    init: Callable
    train_step: Callable
    eval_step: Callable


def evaluation_masking(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, ratio: float | None = None
) -> Masking:
    """Uniform masks, all [MASK], whatever the strategy; `ratio` is that of evaluations, unless given."""
    return Masking(
        vocabulary, ratio=config.evaluation.ratio if ratio is None else ratio, repeats=config.masking.repeats
    )


def traceable(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy whose model can be traced on any machine: without attention kernels, which change no shape of anything."""
    config = config.copy_and_resolve_references()
    config.model.attention_backend = 'xla'
    return config


def state_shapes(config: ml_collections.ConfigDict) -> TrainState:
    """Shapes and dtypes of the state of a run."""
    run = make_run(traceable(config), standard_vocabulary(config.vocab_size), steps_per_epoch=1000.0)
    return jax.eval_shape(run.init)


def encoder_config(config: ml_collections.ConfigDict) -> EncoderConfig:
    """The encoder that `config.model` describes."""
    return EncoderConfig(vocab_size=config.vocab_size, max_length=config_lib.row_length(config), **config.model)


def make_objective(config: ml_collections.ConfigDict, vocabulary: Vocabulary):
    """The Linen module that `config.objective` names, with the settings under that name, where it has any."""
    options = dict(config.get(config.objective, {}))
    if config.objective == 'exlm':
        options['weigh_by_count'] = config.masking.ratio_schedule == 'diffusion'
    return OBJECTIVES[config.objective](encoder_config(config), options, vocabulary)


def make_optimizer_of_run(
    config: ml_collections.ConfigDict, total_steps: int, steps_per_epoch: float
) -> tuple[optax.GradientTransformation, Callable]:
    """The optimizer, and its learning rate as a function of the update."""
    durations = dict(total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    schedule = make_schedule(
        config.schedule.name,
        total_steps,
        config_lib.resolve_steps(config, 'schedule.warmup', **durations) or 0,
        config_lib.resolve_steps(config, 'schedule.decay', **durations) or 0,
    )
    return make_optimizer(config.optimizer, schedule), lambda step: config.optimizer.learning_rate * schedule(step)


def make_masking(
    config: ml_collections.ConfigDict,
    vocabulary: Vocabulary,
    total_steps: int,
    steps_per_epoch: float,
    tables: Tables | None = None,
) -> Masking:
    """The masking of the training that `config.masking` describes.

    Args:
      config: a checked configuration.
      vocabulary: the special ids.
      total_steps: the length of the run, by which the ratio moves.
      steps_per_epoch: rows / batch_size, by which visits are counted.
      tables: what units and weights need; those that lack it refuse to be traced.
    """
    k = config.masking
    durations = dict(total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    anneal_steps = config_lib.resolve_steps(config, 'masking.anneal', **durations) or 0
    schedule = RatioSchedule(k.ratio_schedule, k.ratio, k.final_ratio, total_steps - anneal_steps, total_steps)
    return Masking(
        vocabulary,
        fully_explored=FullyExplored(**k.fully_explored),
        schedule=schedule,
        tables=tables,
        seed=config.seed,
        num_rows=round(steps_per_epoch * config.batch_size),
        **{key: k[key] for key in _PLAIN_MASKING_KEYS},
    )


def make_run(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, steps_per_epoch: float, tables: Tables | None = None
) -> Run:
    """Everything that a run computes, before any device is touched.

    Args:
      config: a checked configuration.
      vocabulary: the special ids; its size is `config.vocab_size`.
      steps_per_epoch: rows / batch_size, for durations in epochs.
      tables: of the tokenizer and the corpus, where the masking of the training needs them.
    """
    total_steps = config_lib.resolve_steps(config, 'total', steps_per_epoch=steps_per_epoch)
    objective = make_objective(config, vocabulary)
    masking = make_masking(config, vocabulary, total_steps, steps_per_epoch, tables)
    optimizer, learning_rate = make_optimizer_of_run(config, total_steps, steps_per_epoch)
    max_masked = masking.max_masked(config.sequence_length)
    return Run(
        objective=objective,
        masking=masking,
        total_steps=total_steps,
        optimizer=optimizer,
        learning_rate=learning_rate,
        init=make_init(objective, optimizer, config.seed, config_lib.row_length(config), max_masked),
        train_step=make_train_step(objective, masking, optimizer, config.seed, config.num_microbatches),
        eval_step=make_eval_step(objective, evaluation_masking(config, vocabulary)),
    )
