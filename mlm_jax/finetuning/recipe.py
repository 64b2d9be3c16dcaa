"""How a task is fine-tuned: the settings that `finetune --set` and `finetune --grid` change."""

import dataclasses

from mlm_jax.models.pooling import POOLINGS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a task is fine-tuned. Rate and batch are the largest of the grids that BERT and MAE-LM use at base.

    Attributes:
      learning_rate: the peak; small encoders need a higher one, for example 3e-4.
      batch_size: rows of an update.
      epochs: the maximal number of passes over the train split.
      warmup_percent: the share of all updates in which the learning rate rises; afterwards it falls linearly to 0.
      weight_decay: decoupled, and applied to kernels and embeddings only.
      b1: of Adam.
      b2: of Adam.
      eps: of Adam.
      clip_norm: maximal global norm of the gradient; 0 does not clip.
      dropout: rate in the encoder, for hidden states and for attention weights; rounded to a multiple of 1/256.
      head_dropout: rate in the head; −1 means the value of `dropout`.
      pooling: the vector of a row that the head reads: 'cls', the state of [CLS], or 'mean', the mean over the tokens.
        In pretraining, a packed row has one [CLS] for each document, so a short pretraining teaches [CLS] little.
      layer_decay: the learning rate of each layer is that of the layer above it times this factor, and the rate of the
        embeddings is the lowest (ELECTRA, whose code gives all of them this factor once more).
      max_length: maximal number of tokens in a row; 0 means the length that the model was trained on.
      evaluations_per_epoch: how often the validation split is scored.
      patience: a run ends after this number of evaluations without improvement; 0 means that it never ends early.
      class_weights: 'none', or 'balanced', which gives rare classes a larger weight in the loss (in a task of several
        yes-or-no targets: the positive examples of each target).
      target_scale: divisor of the targets of a regression; 0 standardizes the targets by the train split.
      max_train_examples: size of a random subset of the train split, the same for all seeds; 0 takes all examples.
      max_validation_examples: size of such a subset of the validation split; 0 takes all examples.
      stride: for SQuAD, tokens from the start of one window of the context to the start of the next; at most half a
        window, so that each answer that is short enough lies whole in one.
      max_query: for SQuAD, the maximal number of tokens of a question; the rest of a longer question is dropped.
      max_answer: for SQuAD, the maximal number of tokens of an answer.
      null_threshold: for SQuAD 2.0, the prediction is "no answer" where the odds of "no answer" are above this value.
    """

    learning_rate: float = 5e-5
    batch_size: int = 32
    epochs: int = 3
    warmup_percent: float = 6.0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    clip_norm: float = 1.0
    dropout: float = 0.1
    head_dropout: float = -1.0
    pooling: str = POOLINGS[0]
    layer_decay: float = 1.0
    max_length: int = 0
    evaluations_per_epoch: int = 1
    patience: int = 0
    class_weights: str = 'none'
    target_scale: float = 0.0
    max_train_examples: int = 0
    max_validation_examples: int = 0
    stride: int = 128
    max_query: int = 64
    max_answer: int = 30
    null_threshold: float = 0.0
