"""From a configuration to the parts of a run: objective, masking, optimizer."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
import optax

from mlm_jax import config as config_lib
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.registry import FullyExplored
from mlm_jax.masking.schedules import RatioSchedule
from mlm_jax.masking.tables import Tables
from mlm_jax.masking.vocabulary import Vocabulary, standard_vocabulary
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.objective import Objective
from mlm_jax.objectives.registry import OBJECTIVES, parameters
from mlm_jax.objectives.spec import module_class
from mlm_jax.training.optimizers import make_optimizer
from mlm_jax.training.schedules import make_schedule
from mlm_jax.training.state import Init, TrainState
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


def make_objective(config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> Objective:
    """The Linen module that `config.objective` names, with the settings under that name, where it has any."""
    spec = OBJECTIVES[config.objective]
    options = spec.options(**config[config.objective], **spec.settings(config)) if spec.options else None
    return module_class(spec).make(encoder_config(config), options, vocabulary)


def make_optimizer_of_run(config: ml_collections.ConfigDict) -> tuple[optax.GradientTransformation, Callable]:
    """The optimizer of a resolved configuration, and its learning rate as a function of the update."""
    c = config.schedule
    schedule = make_schedule(c.name, config.total_steps, c.warmup_steps or 0, c.decay_steps or 0)
    optimizer = make_optimizer(config.optimizer, schedule, parameters(config.objective))
    return optimizer, lambda step: config.optimizer.learning_rate * schedule(step)


def make_masking(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, num_rows: int, tables: Tables | None = None
) -> Masking:
    """The masking of the training that `config.masking` describes.

    Args:
      config: a resolved configuration.
      vocabulary: the special ids.
      num_rows: of an epoch, by which visits are counted.
      tables: what units and weights need; those that lack it refuse to be traced.
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
        **{key: k[key] for key in _PLAIN_MASKING_KEYS},
    )


def make_run(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, steps_per_epoch: float, tables: Tables | None = None
) -> Run:
    """Everything that a run computes, before any device is touched.

    Args:
      config: a resolved configuration; what one that is only checked leaves open is decided here.
      vocabulary: the special ids; its size is `config.vocab_size`.
      steps_per_epoch: rows / batch_size, by which visits of rows are counted.
      tables: of the tokenizer and the corpus, where the masking of the training needs them.
    """
    config = config_lib.in_steps(config_lib.decided(config), steps_per_epoch)
    objective = make_objective(config, vocabulary)
    masking = make_masking(config, vocabulary, round(steps_per_epoch * config.batch_size), tables)
    optimizer, learning_rate = make_optimizer_of_run(config)
    max_masked = masking.max_masked(config.sequence_length)
    return Run(
        objective=objective,
        masking=masking,
        total_steps=config.total_steps,
        optimizer=optimizer,
        learning_rate=learning_rate,
        init=Init(
            objective, optimizer, config.seed, config_lib.row_length(config), max_masked, parameters(config.objective)
        ),
        train_step=make_train_step(objective, masking, optimizer, config.seed, config.num_microbatches),
        eval_step=make_eval_step(objective, evaluation_masking(config, vocabulary)),
    )
