"""From a configuration to the parts of a run: objective, masking, optimizer."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
import optax

from mlm_jax import config as config_lib
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.ratio_schedules import RatioSchedule
from mlm_jax.masking.registry import FullyExplored
from mlm_jax.masking.tables import Tables
from mlm_jax.masking.vocabulary import Vocabulary, standard_vocabulary
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.objective import Objective
from mlm_jax.objectives.registry import OBJECTIVES, parameters
from mlm_jax.objectives.spec import module_class
from mlm_jax.training.gradients import GradientSums
from mlm_jax.training.learning_rate import make_schedule
from mlm_jax.training.optimizers import make_optimizer
from mlm_jax.training.state import Init, TrainState
from mlm_jax.training.step import make_eval_step, make_train_step

# Keys of `config.masking` that are fields of `Masking` as they are.
_PLAIN_MASKING_KEYS = {field.name for field in dataclasses.fields(Masking)} - {'fully_explored'}


@dataclasses.dataclass(frozen=True)
class Run:
    """The pure functions and the length of a run, all of which follow from its configuration.

    Attributes:
      objective: the Linen module.
      masking: the masking of the training batches.
      total_steps: the number of updates.
      optimizer: the optimizer, which takes the mean gradient.
      learning_rate: number of the update → learning rate.
      init: () → TrainState.
      train_step: (state, tokens) → (state, metrics).
      eval_step: (params, tokens, index of the first row) → metrics.
    """

    objective: Objective
    masking: Masking
    total_steps: int
    optimizer: optax.GradientTransformation
    learning_rate: Callable
    init: Init
    train_step: Callable
    eval_step: Callable


def evaluation_masking(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, ratio: float | None = None
) -> Masking:
    """The masking of evaluations: uniform, all [MASK], whatever the strategy; `ratio` replaces `evaluation.ratio`."""
    return Masking(
        vocabulary, ratio=config.evaluation.ratio if ratio is None else ratio, repeats=config.masking.repeats
    )


def traceable(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy whose model can be traced on any machine: without attention kernels, which do not affect any shapes."""
    config = config.copy_and_resolve_references()
    config.model.attention_backend = 'xla'
    return config


def state_shapes(config: ml_collections.ConfigDict) -> TrainState:
    """The shapes and dtypes of the state of a run with a resolved configuration, as ShapeDtypeStructs."""
    run = make_run(traceable(config), standard_vocabulary(config.vocab_size), config.batch_size)
    return jax.eval_shape(run.init)


def encoder_config(config: ml_collections.ConfigDict) -> EncoderConfig:
    """The configuration of the encoder that `config.model` describes."""
    return EncoderConfig(vocab_size=config.vocab_size, max_length=config_lib.row_length(config), **config.model)


def make_objective(config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> Objective:
    """The Linen module that `config.objective` names, with the options in the part of `config` with that name."""
    spec = OBJECTIVES[config.objective]
    options = spec.options(**config[config.objective], **spec.settings(config)) if spec.options else None
    return module_class(spec).make(encoder_config(config), options, vocabulary)


def make_optimizer_of_run(config: ml_collections.ConfigDict) -> tuple[optax.GradientTransformation, Callable]:
    """The optimizer of a resolved configuration, and the learning rate as a function of the number of the update."""
    c = config.schedule
    schedule = make_schedule(c.name, config.total_steps, c.warmup_steps or 0, c.decay_steps or 0)
    optimizer = make_optimizer(config.optimizer, schedule, parameters(config.objective))
    return optimizer, lambda step: config.optimizer.learning_rate * schedule(step)


def make_masking(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, num_rows: int, tables: Tables | None = None
) -> Masking:
    """The masking of training batches that `config.masking` describes.

    Args:
      config: a resolved configuration.
      vocabulary: the special ids and the number of ids.
      num_rows: the number of rows of an epoch, from which visits are counted.
      tables: what units and sampling weights need; if a table is missing, the masking raises an error when traced.
    """
    k, total_steps = config.masking, config.total_steps
    start_step = total_steps - (k.anneal_steps or 0)
    return Masking(
        vocabulary,
        fully_explored=FullyExplored(**k.fully_explored),
        schedule=RatioSchedule(k.ratio_schedule, k.ratio, k.final_ratio, start_step, total_steps),
        tables=tables,
        seed=config.seed,
        num_rows=num_rows,
        **{key: value for key, value in k.items() if key in _PLAIN_MASKING_KEYS},
    )


def gradient_sums(config: ml_collections.ConfigDict) -> GradientSums:
    """How the gradients of a run with a resolved configuration are summed over devices."""
    return GradientSums(
        config.sharding, parameters(config.objective), config.model.dtype, by_layer=config.fsdp_gather == 'layer'
    )


def make_run(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, num_rows: int, tables: Tables | None = None
) -> Run:
    """Everything that a run computes; this does not use any device.

    Args:
      config: a resolved configuration.
      vocabulary: the special ids and the number of ids, which is `config.vocab_size`.
      num_rows: the number of rows of an epoch, from which visits of rows are counted.
      tables: what the masking needs from the tokenizer and the corpus; None if it needs nothing.
    """
    objective = make_objective(config, vocabulary)
    masking = make_masking(config, vocabulary, num_rows, tables)
    optimizer, learning_rate = make_optimizer_of_run(config)
    max_masked = masking.max_masked(config.sequence_length)
    return Run(
        objective=objective,
        masking=masking,
        total_steps=config.total_steps,
        optimizer=optimizer,
        learning_rate=learning_rate,
        init=Init(
            objective,
            optimizer,
            config.seed,
            config_lib.row_length(config),
            max_masked,
            parameters(config.objective),
            has_ema=config.ema.decay > 0,
        ),
        train_step=make_train_step(
            objective, masking, optimizer, config.seed, config.num_microbatches, config.ema.decay, gradient_sums(config)
        ),
        eval_step=make_eval_step(objective, evaluation_masking(config, vocabulary)),
    )
