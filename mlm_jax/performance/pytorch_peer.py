"""The same training step in PyTorch, as its users write it, with `transformers.BertForMaskedLM`: a peer for benchmarks.

The architecture, the initial weights, the rows, the masks and the optimizer are those of a configuration; dropout draws
other random bits. The comparison favors PyTorch in these points: scaled_dot_product_attention gets no mask where each
row holds one document, AdamW is the fused implementation, float32 products on GPUs use TF32 as in XLA, and the masks
are drawn beforehand, whereas the step in JAX draws its own. Only the masked positions pass through the head, as in the
step in JAX; the variants `everywhere` compute logits at every position, as `model(input_ids, labels=labels)` does.

PyTorch and transformers (extra `peer`) are imported where they are used.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mlm_jax import config as config_lib
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.models.positions import positions_in_documents
from mlm_jax.pretrained import huggingface

NOT_PREDICTED = -100  # the label of positions that transformers and torch's cross_entropy leave out of the loss


@dataclasses.dataclass(frozen=True)
class Variant:
    """How PyTorch runs the step.

    Attributes:
      compiled: whether torch.compile compiles the step; otherwise it runs eagerly.
      dtype: 'float32', or 'bfloat16', which is applied by autocast.
      everywhere: whether the head is applied at every position, not only at the masked ones.
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
    """torch.compile does not work on this machine; the message tells why."""


def check(config: ml_collections.ConfigDict, encoder: EncoderConfig) -> None:
    """Checks that BertForMaskedLM can compute the step of a configuration.

    Args:
      config: of the step.
      encoder: the encoder of this configuration.

    Raises:
      ConfigError: when it cannot; the message lists all keys that must change, with the values to set.
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
        raise ConfigError(
            f'the peer in PyTorch is a BertForMaskedLM with AdamW, and this configuration is different: set {text}'
        )


def import_torch() -> tuple[Any, Any]:
    """The modules torch and transformers.

    Raises:
      ImportError: when one of them is missing; the message names the extra.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise ImportError("the peer needs PyTorch and transformers: pip install 'mlm_jax[peer]'") from None
    return torch, transformers


def device_type() -> str:
    """'cpu' or 'cuda', as PyTorch calls the kind of device on which JAX computes: both sides run on the same kind.

    Raises:
      ConfigError: when PyTorch cannot use this kind.
      ImportError: without the extra `peer`.
    """
    torch, _ = import_torch()
    platform = jax.devices()[0].platform
    if platform == 'cpu':
        return 'cpu'
    cure = 'or compare both on the CPU, with the environment variable JAX_PLATFORMS=cpu'
    if platform != 'gpu':
        raise ConfigError(f'the peer runs on a CPU or a GPU, and JAX runs on a {platform}: leave out --peer, {cure}')
    if not torch.cuda.is_available():
        raise ConfigError(
            f'JAX runs on a GPU, which this PyTorch ({torch.__version__}) cannot use: install one built for the '
            f'CUDA version of the driver (pytorch.org/get-started/locally), {cure}'
        )
    return 'cuda'


class PyTorchStep:
    """A training step of BertForMaskedLM: a Contestant of `performance.speed`.

    Attributes:
      name: the name in tables.
      tokens_per_step: as in the step in JAX.
      flops_per_step: as in the step in JAX, even if PyTorch computes more.
      compile_seconds: the time until the first step, which compiles, is done.
      memory_bytes: the maximal memory that PyTorch used on a GPU for the first step; None on a CPU.
      seconds: for each round so far, the seconds of one step.
      cpu_seconds: for each round so far, the CPU seconds of one step, summed over all cores.
      loss: of the last step; without dropout, it equals the loss of the step in JAX with the same masks.
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
          name: the name in tables.
          variant: how to run the step.
          config: a configuration that `check` accepts.
          encoder: the encoder of this configuration.
          params: parameters of the objective `mlm`, in the memory of the host.
          batch: the rows and the masks of every step, also in the memory of the host.
          learning_rate: of every step.
          tokens_per_step: as in the step in JAX.
          flops_per_step: as in the step in JAX.

        Raises:
          CannotCompile: when torch.compile fails.
          ConfigError: when PyTorch cannot use the kind of device on which JAX computes.
        """
        torch, transformers = import_torch()
        self.name, self.dtype = name, variant.dtype
        self.tokens_per_step, self.flops_per_step = tokens_per_step, flops_per_step
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.parts: dict[str, list[float]] = {}
        self.memory_bytes: int | None = None
        self._torch = torch
        self._device = torch.device(device_type())
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
        """Runs steps and returns the seconds of one step."""
        start = time.perf_counter()
        for _ in range(num_steps):
            self._step()
        if self._device.type == 'cuda':
            self._torch.cuda.synchronize()
        return (time.perf_counter() - start) / num_steps

    def run_parts(self, num_steps: int) -> None:
        """Does nothing: the parts of a step in PyTorch are not timed."""

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


def _model(torch: Any, transformers: Any, encoder: EncoderConfig, params: Mapping) -> Any:
    config = transformers.BertConfig(**huggingface.bert_description(encoder), attn_implementation='sdpa')
    model = transformers.BertForMaskedLM(config)
    arrays = {name: torch.tensor(np.asarray(array, np.float32)) for name, array in huggingface.bert_arrays(params)}
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    # Tied weights are missing under their second name, and buffers are not parameters: neither is an error.
    lacking = set(missing) & {name for name, _ in model.named_parameters()}
    if lacking or unexpected:
        raise ValueError(
            f'the weights do not fit BertForMaskedLM: {sorted(lacking)} are missing, and {unexpected} are unknown'
        )
    return model


def _inputs(batch: MaskedBatch) -> dict[str, np.ndarray]:
    """The arrays for PyTorch: ids, labels, the masked positions in the flattened batch, and the attention mask."""
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
    # Several documents in a row, or padding, need an attention mask.
    if (segments != segments[:, :1]).any() or not segments.all():
        inputs['attention_mask'] = (segments[:, :, None] == segments[:, None, :])[:, None]
        inputs['position_ids'] = np.asarray(positions_in_documents(jnp.asarray(segments)), np.int64)
    return inputs


def _at_masked(torch: Any, model: Any, inputs: Mapping) -> Callable:
    """The loss over the masked positions, with the head applied at these positions only."""
    options = {name: inputs[name] for name in ('attention_mask', 'position_ids') if name in inputs}

    def loss():
        hidden = model.bert(input_ids=inputs['input_ids'], **options).last_hidden_state
        logits = model.cls(hidden.flatten(0, 1)[inputs['masked']])
        return torch.nn.functional.cross_entropy(logits.float(), inputs['targets'])

    return loss


def _everywhere(model: Any, inputs: Mapping) -> Callable:
    """The loss as `model(input_ids, labels=labels)` computes it, with the head at every position."""
    options = {name: inputs[name] for name in ('attention_mask', 'position_ids') if name in inputs}
    return lambda: model(input_ids=inputs['input_ids'], labels=inputs['labels'], **options).loss


def _optimizer(torch: Any, model: Any, options: ml_collections.ConfigDict, learning_rate: float) -> tuple[Any, float]:
    """AdamW with the weight decay of `options`, and the norm at which gradients are clipped."""
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
