"""The same training step in PyTorch, as its users write it: `transformers.BertForMaskedLM`, to be timed beside ours.

Architecture, initial weights, rows, masks and optimizer are those of a configuration; dropout draws its own bits. What
is done for PyTorch: scaled_dot_product_attention without a mask where rows are whole, AdamW in its fused form, TF32
for float32 on GPUs as XLA has it, and masks drawn beforehand, which our step draws itself. The masked positions alone
pass through the head, as here; `everywhere` computes logits at every position, as `model(input_ids, labels=labels)`.

PyTorch and transformers (extra `peer`) are imported where they are used.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping

import ml_collections
import numpy as np

from mlm_jax import config as config_lib
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.models.positions import positions_in_documents
from mlm_jax.pretrained import huggingface

NOT_PREDICTED = -100  # the label that transformers and cross_entropy leave out


@dataclasses.dataclass(frozen=True)
class Variant:
    """How PyTorch runs the step.

    Attributes:
      compiled: by torch.compile; else eagerly.
      dtype: 'float32', or 'bfloat16' by autocast.
      everywhere: the head at every position, not only at the masked ones.
    """

    compiled: bool
    dtype: str
    everywhere: bool = False

    @property
    def name(self) -> str:
        """Such as 'compile-bfloat16' or 'eager-float32-everywhere'."""
        return f'{"compile" if self.compiled else "eager"}-{self.dtype}{"-everywhere" if self.everywhere else ""}'


VARIANTS = {
    variant.name: variant
    for everywhere in (False, True)
    for dtype in ('float32', 'bfloat16')
    for compiled in (False, True)
    for variant in (Variant(compiled, dtype, everywhere),)
}

DEFAULT_VARIANTS = [
    'eager-float32', 'compile-float32', 'eager-bfloat16', 'compile-bfloat16', 'eager-float32-everywhere',
    'compile-bfloat16-everywhere',
]  # fmt: skip


class CannotCompile(Exception):
    """torch.compile does not work here; the message says why."""


def check(config: ml_collections.ConfigDict, encoder: EncoderConfig) -> None:
    """Checks that BertForMaskedLM can do what a configuration asks for.

    Raises:
      ConfigError: with all keys in the way, and the values to set.
      ImportError: without the extra `peer`.
    """
    import_torch()
    wanted = {f'model.{key}': value for key, value in huggingface.differences_from_bert(encoder).items()}
    for key, value in {'objective': 'mlm', 'optimizer.name': 'adamw', 'num_microbatches': 1}.items():
        part, _, name = key.rpartition('.')
        if (config[part] if part else config)[name] != value:
            wanted[key] = value
    if wanted:
        text = ', '.join(f'{key}={value}' for key, value in wanted.items())
        raise ConfigError(f'the peer is a BertForMaskedLM with AdamW, which this configuration is not: set {text}')


def import_torch():
    """The modules torch and transformers.

    Raises:
      ImportError: naming the extra.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise ImportError("the peer needs PyTorch and transformers: pip install 'mlm_jax[peer]'") from None
    return torch, transformers


class PyTorchStep:
    """A training step of BertForMaskedLM: a Contestant of `performance.speed`.

    Attributes:
      name: as tables show it.
      tokens_per_step: as of our step.
      flops_per_step: as of our step, whatever PyTorch computes besides.
      compile_seconds: of the first step, which compiles.
      memory_bytes: the most that PyTorch held for the first step on a GPU; None on a CPU.
      seconds: of one step, for each round so far; `cpu_seconds`, of all cores together.
      loss: of the last step; ours of the same masks, where there is no dropout.
    """

    num_devices = 1

    def __init__(
        self,
        name: str,
        variant: Variant,
        config: ml_collections.ConfigDict,
        encoder: EncoderConfig,
        params: Mapping,
        batch: MaskedBatch,
        learning_rate: float,
        tokens_per_step: int,
        flops_per_step: float,
    ):
        """Builds the model, and runs the step once.

        Args:
          name: as tables show it.
          variant: how to run it.
          config: one that `check` accepts.
          encoder: its encoder.
          params: of the objective `mlm`, arrays in the memory of the host.
          batch: the rows and masks of every step, there too.
          learning_rate: of every step.
          tokens_per_step: as of our step.
          flops_per_step: as of our step.

        Raises:
          CannotCompile: when torch.compile fails.
        """
        torch, transformers = import_torch()
        self.name, self.dtype = name, variant.dtype
        self.tokens_per_step, self.flops_per_step = tokens_per_step, flops_per_step
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.parts: dict[str, list[float]] = {}
        self.memory_bytes: int | None = None
        self._torch = torch
        self._device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        if self._device.type == 'cuda':
            torch.set_float32_matmul_precision('high')
        held = self._reset_memory()
        start = time.perf_counter()
        self.model = _model(torch, transformers, encoder, params).to(self._device).train()
        inputs = {name: torch.from_numpy(array).to(self._device) for name, array in _inputs(batch).items()}
        loss = _everywhere(self.model, inputs) if variant.everywhere else _at_masked(torch, self.model, inputs)
        self._loss = torch.compile(loss, dynamic=False) if variant.compiled else loss
        self._optimizer, self._clip_norm = _optimizer(torch, self.model, config.optimizer, learning_rate)
        try:
            self.run(1)
        except Exception as error:
            if variant.compiled and type(error).__module__.startswith(('torch._inductor', 'torch._dynamo')):
                raise CannotCompile(_first_line(error)) from error
            raise
        self.compile_seconds = time.perf_counter() - start
        if held is not None:
            self.memory_bytes = torch.cuda.max_memory_allocated() - held

    def run(self, num_steps: int) -> float:
        """Runs steps and returns the seconds of one."""
        start = time.perf_counter()
        for _ in range(num_steps):
            self._step()
        if self._device.type == 'cuda':
            self._torch.cuda.synchronize()
        return (time.perf_counter() - start) / num_steps

    def run_parts(self, num_steps: int) -> None:
        """It has none."""

    def _step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision():
            self.loss = self._loss()
        self.loss.backward()
        self.loss = self.loss.detach()
        if self._clip_norm:
            self._torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._optimizer.step()

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.dtype == 'float32':
            return contextlib.nullcontext()
        return self._torch.autocast(self._device.type, self._torch.bfloat16)

    def _reset_memory(self) -> int | None:
        if self._device.type != 'cuda':
            return None
        self._torch.cuda.reset_peak_memory_stats()
        return self._torch.cuda.memory_allocated()


def _model(torch, transformers, encoder: EncoderConfig, params: Mapping):
    config = transformers.BertConfig(**huggingface.bert_description(encoder), attn_implementation='sdpa')
    model = transformers.BertForMaskedLM(config)
    arrays = {name: torch.tensor(np.asarray(array, np.float32)) for name, array in huggingface.bert_arrays(params)}
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    # What is tied to another name is not among ours, and buffers are none of our business.
    lacking = set(missing) & {name for name, _ in model.named_parameters()}
    if lacking or unexpected:
        raise ValueError(f'weights do not fit BertForMaskedLM: {sorted(lacking)} missing, {unexpected} unknown')
    return model


def _inputs(batch: MaskedBatch) -> dict[str, np.ndarray]:
    """What PyTorch gets: ids, labels, where the masked tokens are in the flattened batch, and what attends to what."""
    tokens, positions = np.asarray(batch.tokens), np.asarray(batch.positions)
    segments, length = np.asarray(batch.segments), batch.tokens.shape[1]
    row, slot = np.nonzero(positions < length)
    column = positions[row, slot]
    labels = np.full(tokens.shape, NOT_PREDICTED, np.int64)
    labels[row, column] = tokens[row, column]
    inputs = {
        'input_ids': np.asarray(batch.inputs, np.int64),
        'labels': labels,
        'masked': row * length + column,
        'targets': tokens[row, column].astype(np.int64),
    }
    if (segments != segments[:, :1]).any() or not segments.all():  # documents, or padding: else no mask is needed
        inputs['attention_mask'] = (segments[:, :, None] == segments[:, None, :])[:, None]
        inputs['position_ids'] = np.asarray(positions_in_documents(segments), np.int64)
    return inputs


def _at_masked(torch, model, inputs: Mapping) -> Callable:
    """The loss of the masked positions, with the head at these alone."""
    options = {name: inputs[name] for name in ('attention_mask', 'position_ids') if name in inputs}

    def loss():
        hidden = model.bert(input_ids=inputs['input_ids'], **options).last_hidden_state
        logits = model.cls(hidden.flatten(0, 1)[inputs['masked']])
        return torch.nn.functional.cross_entropy(logits.float(), inputs['targets'])

    return loss


def _everywhere(model, inputs: Mapping) -> Callable:
    """The loss as users ask for it."""
    options = {name: inputs[name] for name in ('attention_mask', 'position_ids') if name in inputs}
    return lambda: model(input_ids=inputs['input_ids'], labels=inputs['labels'], **options).loss


def _optimizer(torch, model, options: ml_collections.ConfigDict, learning_rate: float):
    """AdamW with the decay of `options`, and the norm at which gradients are clipped."""
    everything = options.decay_mask == 'all'
    decayed = [p for p in model.parameters() if everything or p.ndim > 1]
    others = [p for p in model.parameters() if not everything and p.ndim <= 1]
    weight_decay = config_lib.weight_decay(options)
    groups = [{'params': decayed, 'weight_decay': weight_decay}, {'params': others, 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group['params']],
        lr=learning_rate, betas=(options.b1, options.b2), eps=options.eps, fused=True,
    )  # fmt: skip
    return optimizer, options.clip_norm


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'
