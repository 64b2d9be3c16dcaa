"""What a user of `transformers` would do with an exported model: a peer for measurements (extra `measure`).

Fine-tuning is `transformers.Trainer` on the model's class for classification; the rows, the settings of the recipe and,
if wanted, the rows of each batch are those of `finetuning/loop.py`. What differs besides: the bits of dropout, the
initial head, a warm-up that begins one update later, and the length of a batch, which is that of its longest row. BERT
also trains an embedding of token types. Heads: those of BERT, MPNet and ESM are linear → tanh → linear on the state of
[CLS], as ours (BERT's without the first dropout); ModernBERT's is the head of its masked language model, pretrained,
and a linear layer, and is made to read [CLS] like the others.

The libraries are imported where they are used.
"""

import contextlib
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlm_jax.files.errors import ConfigError
from mlm_jax.finetuning import inputs as inputs_lib
from mlm_jax.finetuning.inputs import Inputs
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.training.workdir import count_cores

LIBRARIES = ('torch', 'transformers', 'accelerate', 'sentence-transformers', 'tokenizers')
# The names that dropout rates have in the configurations of the classes that `export` writes.
_DROPOUT = (
    'hidden_dropout_prob',
    'attention_probs_dropout_prob',
    'attention_dropout',
    'embedding_dropout',
    'mlp_dropout',
)
_HEAD_DROPOUT = 'classifier_dropout'
# Of a recipe: what the Trainer has no setting for, at the only value that it can do.
_FIXED = {'layer_decay': 1.0, 'pooling': 'cls', 'class_weights': 'none', 'patience': 0}


def check(recipe: Recipe) -> None:
    """Raises ConfigError for a recipe that the Trainer cannot follow, ImportError where a library is missing."""
    try:
        import accelerate  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'mlm_jax[measure]'") from None
    if wrong := [f'{key}={value}' for key, value in _FIXED.items() if getattr(recipe, key) != value]:
        raise ConfigError(f'the Trainer of transformers needs other settings: set {", ".join(wrong)}')


def use_all_cores() -> int:
    """Makes PyTorch compute with as many threads as there are cores for this process; their number."""
    import torch

    torch.set_num_threads(count_cores())
    return torch.get_num_threads()


def encode(directory: pathlib.Path, texts: Sequence[str], like: Inputs) -> Inputs:
    """The rows of texts as AutoTokenizer reads them, cut as those of `like`, whose targets they have."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(list(texts), truncation=True, max_length=like.max_length)['input_ids']
    return Inputs([np.array(row, np.int32) for row in ids], like.targets, like.max_length)


def fine_tune(
    directory: pathlib.Path, train: Inputs, num_classes: int, recipe: Recipe, seed: int, same_batches: bool
) -> tuple[Any, float]:
    """Trains the exported model in `directory` as a classifier.

    Args:
      directory: of an exported model.
      train: its rows, with the number of the class as target.
      num_classes: of the task.
      recipe: that `check` accepts.
      seed: of the head, of the order of rows, and of dropout.
      same_batches: whether each batch has the rows that it has in `finetuning/loop.py`; otherwise the Trainer draws
        them, at random from all rows, as it does by default.

    Returns:
      The Trainer, and the seconds of the training alone.
    """
    import transformers

    with _quiet(transformers), tempfile.TemporaryDirectory() as scratch:
        transformers.set_seed(seed)
        trainer = _trainer(transformers)(
            model=_classifier(transformers, directory, num_classes, recipe),
            args=_arguments(transformers, train, recipe, seed, scratch),
            train_dataset=_data_set(train),
            processing_class=transformers.AutoTokenizer.from_pretrained(directory),
        )
        trainer.batches = _Batches(train.lengths, recipe, seed) if same_batches else None
        trainer.train()
    return trainer, trainer.clock.seconds


def predict(trainer: Any, rows: Inputs) -> np.ndarray:
    """float32[N, num_classes]: the logits of rows, in their order."""
    import transformers

    with _quiet(transformers):
        return np.asarray(trainer.predict(_data_set(rows)).predictions, np.float32)


class SentenceEncoder:
    """An exported model as sentence-transformers reads it."""

    def __init__(self, directory: pathlib.Path, batch_size: int):
        """Loads it.

        Args:
          directory: of an exported model.
          batch_size: texts of a batch; texts of similar length share one.

        Raises:
          ImportError: without sentence-transformers.
        """
        try:
            import sentence_transformers
        except ImportError:
            raise ImportError("sentence-transformers is missing: pip install 'mlm_jax[measure]'") from None
        import transformers

        with _quiet(transformers):
            self._model = sentence_transformers.SentenceTransformer(str(directory))
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32[N, d]: a vector for each text."""
        return self._model.encode(list(texts), batch_size=self._batch_size, show_progress_bar=False)


def _classifier(transformers: Any, directory: pathlib.Path, num_classes: int, recipe: Recipe) -> Any:
    config = transformers.AutoConfig.from_pretrained(directory, num_labels=num_classes)
    head = recipe.dropout if recipe.head_dropout < 0 else recipe.head_dropout
    for name, rate in {**dict.fromkeys(_DROPOUT, recipe.dropout), _HEAD_DROPOUT: head}.items():
        if hasattr(config, name):
            setattr(config, name, rate)
    if hasattr(config, 'classifier_pooling'):  # ModernBERT's
        config.classifier_pooling = recipe.pooling
    kind = transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(directory, config=config, dtype='float32')


def _arguments(transformers: Any, train: Inputs, recipe: Recipe, seed: int, scratch: str) -> Any:
    import torch

    total = recipe.epochs * math.ceil(len(train.tokens) / recipe.batch_size)
    return transformers.TrainingArguments(
        output_dir=scratch, num_train_epochs=recipe.epochs, per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=2 * recipe.batch_size, learning_rate=recipe.learning_rate, adam_beta1=recipe.b1,
        adam_beta2=recipe.b2, adam_epsilon=recipe.eps, weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip_norm, lr_scheduler_type='linear',
        warmup_steps=round(total * recipe.warmup_percent / 100), seed=seed, report_to=[], save_strategy='no',
        eval_strategy='no', logging_strategy='no', disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def _data_set(rows: Inputs) -> list[dict[str, Any]]:
    return [
        {'input_ids': row.tolist(), 'attention_mask': [1] * len(row), 'labels': int(target)}
        for row, (target,) in zip(rows.tokens, rows.targets, strict=True)
    ]


class _Batches:
    """The rows of each batch, as `finetuning/loop.py` takes them: a batch sampler of PyTorch, epoch after epoch."""

    def __init__(self, lengths_N: np.ndarray, recipe: Recipe, seed: int):
        self._lengths, self._batch_size, self._seed, self._epoch = lengths_N, recipe.batch_size, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in inputs_lib.epoch_batches(self._lengths, self._batch_size, self._seed, self._epoch):
            yield rows.tolist()
        self._epoch += 1


def _trainer(transformers: Any) -> type:
    """The Trainer, with a clock, and with batches that are given."""
    import torch

    class Clock(transformers.TrainerCallback):
        seconds = math.nan

        def on_train_begin(self, *_, **__):
            self._start = time.perf_counter()

        def on_train_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self._start

    class Trainer(transformers.Trainer):
        batches: _Batches | None = None

        def __init__(self, **options):
            self.clock = Clock()
            super().__init__(**options, callbacks=[self.clock])
            self.remove_callback(transformers.PrinterCallback)

        def get_train_dataloader(self):
            if self.batches is None:
                return super().get_train_dataloader()
            loader = torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator
            )
            return self.accelerator.prepare(loader)

    return Trainer


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without notes and bars: of a head that is new, nobody needs to be told."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
