"""A directory as `transformers` itself reads and computes it, beside the numbers here (extra `peer`)."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlm_jax.files.errors import ConfigError

TOLERANCE = 1e-4  # of logits, in float32


def token_ids(directory: pathlib.Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids that AutoTokenizer gives texts, with special tokens."""
    with _quiet() as (transformers, _):
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        return [tokenizer(text)['input_ids'] for text in texts]


def outputs(directory: pathlib.Path, tokens_BxT: np.ndarray, real_BxT: np.ndarray, has_head: bool) -> np.ndarray:
    """f32[B, T, V], the logits of the masked language model, or f32[B, T, d], the output of an encoder.

    Args:
      directory: of the model.
      tokens_BxT: int[B, T].
      real_BxT: bool[B, T], false for padding.
      has_head: whether it is a masked language model.

    Raises:
      ConfigError: without transformers and torch, and where weights are missing or left over.
    """
    with _quiet() as (transformers, torch):
        kind = transformers.AutoModelForMaskedLM if has_head else transformers.AutoModel
        model, report = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
        missing = [name for name in report['missing_keys'] if not name.startswith(('pooler.', 'contact_head.'))]
        if missing or report['unexpected_keys']:
            raise ConfigError(
                f'{directory}: {type(model).__name__} misses {sorted(missing)} and does not know '
                f'{sorted(report["unexpected_keys"])}'
            )
        with torch.no_grad():
            result = model.eval()(
                input_ids=torch.from_numpy(tokens_BxT.astype(np.int64)),
                attention_mask=torch.from_numpy(real_BxT.astype(np.int64)),
            )
        return (result.logits if has_head else result.last_hidden_state).float().numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[tuple[Any, Any]]:
    """transformers and torch, the former without its notes and bars."""
    try:
        import torch
        import transformers
    except ImportError:
        raise ConfigError(
            "--check compares with transformers, which is not installed: pip install 'mlm_jax[peer]', or leave it out"
        ) from None
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield transformers, torch
    finally:
        transformers.logging.set_verbosity(level)
