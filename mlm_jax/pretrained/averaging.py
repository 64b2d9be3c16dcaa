"""Averages of the parameters of several checkpoints of one model, as `average:SOURCE,SOURCE,…` names them.

Averages of late checkpoints are often better than the last (arXiv 2209.14981, with RoBERTa; arXiv 2306.03241).
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.config.access import get
from mlm_jax.files import atomic
from mlm_jax.files.errors import ConfigError
from mlm_jax.interop.architecture import deciding
from mlm_jax.interop.checkpoint import TOKENIZERS, tokenizer_file
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.pretrained import huggingface
from mlm_jax.pretrained.sources import Source
from mlm_jax.training import build
from mlm_jax.training.resuming import state_keys
from mlm_jax.training.workdir import read_config


class Mean:
    """A weighted mean of pytrees of arrays that are added one at a time, so that memory holds two of them at most.

    Each addition moves the mean by the share of its weight: m ← m + (w / Σw)(x − m), in float32. The mean of one
    pytree, or of several that are equal, is therefore that to the bit.
    """

    def __init__(self) -> None:
        """Of nothing yet."""
        self.value: Any = None
        self._weight = 0.0

    def add(self, tree: Any, weight: float) -> None:
        """Adds a pytree of float32 arrays with a weight above 0.

        Raises:
          ConfigError: for names or shapes of parameters other than those before.
        """
        self._weight += weight
        layout = jax.tree.map(lambda x: x.sharding, tree)
        if self.value is None:
            self.value = jax.jit(_copy, out_shardings=layout)(tree)
            return
        _check_shapes(self.value, tree)
        move = jax.jit(_moved, donate_argnums=0, out_shardings=layout)
        self.value = move(self.value, tree, weight / self._weight)


def _copy(tree: Any) -> Any:
    """In buffers of its own, which later additions reuse."""
    return jax.tree.map(jnp.copy, tree)


def _moved(mean: Any, tree: Any, share: jax.Array) -> Any:
    return jax.tree.map(lambda m, x: m + share * (x - m), mean, tree)


def _check_shapes(mean: Any, tree: Any) -> None:
    theirs, ours = (
        {jax.tree_util.keystr(path, simple=True, separator='/'): x.shape for path, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (mean, tree))
    )
    if different := [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]:
        lines = [f'  {name}: {theirs.get(name, "none")} and {ours.get(name, "none")}' for name in different[:5]]
        raise ConfigError('parameters that are averaged must have the same names and shapes:\n' + '\n'.join(lines))


def run_config(source: Source) -> ml_collections.ConfigDict:
    """The configuration of the run that a source names.

    Raises:
      ConfigError: when there is no such run, and for `ema:` of a run that keeps no moving average.
    """
    config = read_config(source.directory)
    if source.is_ema and not config.ema.decay:
        raise ConfigError(
            f'{source}: this run has kept no moving average of its parameters, which ema.decay=0.999 asks for. '
            f'average:{source.directory}@STEP,{source.directory}@STEP,… averages its checkpoints'
        )
    return config


def check(source: Source) -> None:
    """Checks that the sources of an average are checkpoints of one model, from their descriptions alone.

    Raises:
      ConfigError: with what differs; and when there is no such model.
    """
    members = [part for part, _ in source.members]
    first, *others = map(_description, members)
    for member, other in zip(members[1:], others, strict=True):
        if keys := [key for key in first | other if first.get(key) != other.get(key)]:
            lines = '\n'.join(f'  {key}: {first.get(key)!r} there, {other.get(key)!r} here' for key in keys)
            raise ConfigError(
                f'{source}: only checkpoints of one model can be averaged, and {member} differs from {members[0]}:'
                f'\n{lines}'
            )


def _description(source: Source) -> dict[str, Any]:
    """What models have in common that can be averaged, by the keys of the configuration."""
    if source.is_hugging_face:
        try:
            encoder, found = huggingface.read_encoder_config(source.on_disk), {'objective': 'mlm'}
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f'{source}: {error}') from error
    else:
        config = config_lib.completed(run_config(source))
        encoder = build.encoder_config(config)
        # What the sizes of the state follow from, but for the optimizer; tables of positions are compared below.
        keys = (key for key in state_keys() if not key.startswith(('optimizer.', 'sequence_length')))
        found = {key: get(config, key) for key in keys}
    return found | _description_of_encoder(encoder) | {'tokenizer (SHA-256)': _tokenizer_hash(source)}


def _description_of_encoder(encoder: EncoderConfig) -> dict[str, Any]:
    has_table = encoder.positions == 'learned' or encoder.relative_buckets
    table = {'sequence_length': encoder.max_length} if has_table else {}
    return {'vocab_size': encoder.vocab_size, **table, **{f'model.{k}': v for k, v in deciding(encoder).items()}}


def _tokenizer_hash(source: Source) -> str:
    path = tokenizer_file(source.on_disk) if source.is_hugging_face else source.directory / 'tokenizer.model'
    if path is None or not path.exists():
        raise ConfigError(f'{source.directory} has no {TOKENIZERS[0] if source.is_hugging_face else "tokenizer.model"}')
    return atomic.sha256(path)[:12]
