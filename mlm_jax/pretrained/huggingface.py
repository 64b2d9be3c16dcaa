"""Directories and weights of `transformers` as the objective `mlm` and its parameters, and the other way round.

Neither PyTorch nor transformers is imported: a directory is `config.json` and safetensors (extra `huggingface`);
weights are plain arrays, and a pytree here. `mlm_jax/interop/` knows which encoder is which architecture there.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlm_jax.files import buckets, paths
from mlm_jax.interop import checkpoint as checkpoint_lib
from mlm_jax.interop import names, registry, weights
from mlm_jax.interop.architecture import Architecture, Encoder
from mlm_jax.interop.checkpoint import Checkpoint
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM

_BERT, _ROBERTA = (registry.BY_TYPE[name] for name in ('bert', 'roberta'))


def from_hf(directory: str | pathlib.Path) -> tuple[MLM, dict]:
    """The module and the parameters of an encoder of `transformers`, as `save_pretrained` leaves it.

    `mlm_jax/interop/registry.py` lists the architectures. What predicts the next sentence, poolers and the like are
    left out. Weights of any float type become float32.

    Args:
      directory: with config.json, and model.safetensors or its shards.

    Returns:
      The module `MLM`, with the dropout of the checkpoint, and its parameters; without `head` where the class of the
      checkpoint is that of an encoder alone. Rows may be as long as `module.config.max_length`.

    Raises:
      FileNotFoundError: when a file is missing.
      ImportError: without the extra `huggingface`.
      ValueError: for another architecture, a recipe without a place here, damaged files, missing and unknown weights,
        weights whose shapes are not those of config.json, and a tied weight whose copy differs.
    """
    checkpoint, params = checkpoint_lib.read(buckets.local(buckets.path(directory).expanduser()))
    return MLM(encoder_config(checkpoint)), params


def read_encoder_config(directory: str | pathlib.Path) -> EncoderConfig:
    """The encoder of a directory that `from_hf` reads, without its weights, whose files must be there.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `from_hf`, for all that can be known from config.json.
    """
    directory = buckets.local(buckets.path(directory).expanduser())
    checkpoint = checkpoint_lib.describe(directory)
    weights.check(directory)
    return encoder_config(checkpoint)


def encoder_config(checkpoint: Checkpoint) -> EncoderConfig:
    """The encoder of a checkpoint."""
    return EncoderConfig(**vars(checkpoint.encoder))


def to_hf(config: EncoderConfig, params: Mapping, directory: str | pathlib.Path, *, pad_id: int = 0) -> None:
    """Writes an MLM as a BertForMaskedLM: `transformers.AutoModelForMaskedLM.from_pretrained(directory)` reads it.

    The tokenizer is not part of it, and other architectures are not considered: `python -m mlm_jax.export` does both.
    Token types have embeddings of zero.

    Args:
      config: of the encoder, as in `objective.config` of a model that `mlm_jax.load` returns.
      params: of the objective `mlm`.
      directory: made where it does not exist; files of these names are replaced.
      pad_id: the id of the padding, for config.json.

    Raises:
      ImportError: without the extra `huggingface`.
      ValueError: for parameters of another objective or of other sizes, for a recipe that BERT cannot express, and for
        a directory in a bucket.
    """
    paths.check_local(str(directory))
    architecture = registry.home_of(_attributes(config), preferred=_BERT.model_type)
    if set(params) != {'encoder', 'head'}:
        raise ValueError(
            f'a BertForMaskedLM is an encoder and a head, the parameters of the objective mlm; these have '
            f'{", ".join(sorted(params))}'
        )
    checkpoint = Checkpoint(architecture, _attributes(config), has_head=True, pad_id=pad_id)
    checkpoint_lib.arrays_of(checkpoint, params)  # before anything is made
    directory = pathlib.Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint_lib.write(checkpoint, params, directory)


def differences_from_bert(config: EncoderConfig) -> dict[str, Any]:
    """Key → the value that BERT has, of those keys of an encoder for whose own value BERT has no place."""
    return _BERT.differences(_attributes(config))


def bert_description(config: EncoderConfig, pad_id: int = 0) -> dict[str, Any]:
    """The arguments of `transformers.BertConfig` for an encoder, as far as it is a BERT."""
    return {**_BERT.describe(_attributes(config), pad_id), 'pad_token_id': pad_id, **_BERT.fixed}


def bert_params(state_dict: Mapping[str, np.ndarray], num_heads: int) -> dict:
    """Parameters of the objective `mlm` from a `BertForMaskedLM`.

    The embedding of token type 0, which single texts have everywhere, is added to each position.

    Args:
      state_dict: name → array, float, such as {k: v.numpy() for k, v in model.state_dict().items()}.
      num_heads: H; the weights do not show it.

    Returns:
      A pytree of float32 arrays.

    Raises:
      ValueError: for missing names, names without a place here, and an output embedding that is not tied.
    """
    return _params(_BERT, state_dict, num_heads, first_position=0, pad_id=0)


def roberta_params(state_dict: Mapping[str, np.ndarray], num_heads: int, pad_id: int = 1) -> dict:
    """Parameters of the objective `mlm` from a `RobertaForMaskedLM`.

    Its positions count from pad_id + 1; the rows of the table before that are dropped.

    Args:
      state_dict: name → array, float.
      num_heads: H.
      pad_id: `pad_token_id` of its configuration.

    Returns:
      A pytree of float32 arrays; the position table has pad_id + 1 rows fewer than theirs.

    Raises:
      ValueError: for missing names, names without a place here, and an output embedding that is not tied.
    """
    return _params(_ROBERTA, state_dict, num_heads, first_position=pad_id + 1, pad_id=pad_id)


def bert_arrays(params: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """The names and arrays of a BertForMaskedLM, but for those that are tied to another."""
    encoder, layers = params['encoder'], params['encoder']['layers']
    vocab_size, width = np.shape(encoder['token_embedding']['embedding'])
    sizes = Encoder(
        vocab_size=vocab_size,
        width=width,
        max_length=len(encoder['position_embedding']['embedding']),
        num_heads=np.shape(layers['attention']['qkv']['kernel'])[3],
        num_layers=len(layers['mlp']['up']['bias']),
        ffn_width=np.shape(layers['mlp']['up']['bias'])[1],
    )
    yield from names.write(Checkpoint(_BERT, sizes, True, 0).rules('bert.'), params)


def _attributes(config: EncoderConfig) -> Encoder:
    return Encoder(**dataclasses.asdict(config))


def _params(
    architecture: Architecture, state_dict: Mapping[str, np.ndarray], num_heads: int, first_position: int, pad_id: int
) -> dict:
    """The parameters from weights alone, whose shapes are the sizes of the model."""
    there = f'{architecture.prefix}.embeddings'
    shapes = {name: np.shape(array) for name, array in state_dict.items()}
    vocab_size, width = _shape(shapes, f'{there}.word_embeddings.weight')
    if width % num_heads:
        raise ValueError(f'num_heads={num_heads} does not divide the width {width}')
    sizes = Encoder(
        vocab_size=vocab_size,
        width=width,
        max_length=_shape(shapes, f'{there}.position_embeddings.weight')[0] - first_position,
        num_heads=num_heads,
        num_layers=1,
        ffn_width=_shape(shapes, f'{architecture.prefix}.encoder.layer.0.intermediate.dense.bias')[0],
    )
    checkpoint = Checkpoint(architecture, sizes, True, pad_id)
    sizes.num_layers = names.count_layers(checkpoint.rules(f'{architecture.prefix}.'), state_dict)
    kept = {name: array for name, array in state_dict.items() if not name.endswith('.embeddings.position_ids')}
    return checkpoint_lib.params_of(checkpoint, kept, 'the weights')


def _shape(shapes: Mapping[str, Sequence[int]], name: str) -> Sequence[int]:
    if name not in shapes:
        raise ValueError(f'the state dict has no {name!r}; its names look like {", ".join(list(shapes)[:3])}')
    return shapes[name]
