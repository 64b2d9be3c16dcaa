"""Directories as `save_pretrained` of transformers leaves them: `config.json` and weights, read and written."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlm_jax.interop import names, registry, weights
from mlm_jax.interop.architecture import Architecture, Encoder
from mlm_jax.interop.description import CONFIG_FILE, OWN_KEY, Description
from mlm_jax.interop.names import Rule
from mlm_jax.interop.state_dict import StateDict


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An encoder of `transformers`, with or without a prediction head.

    Attributes:
      architecture: whose class computes it.
      encoder: attributes of EncoderConfig that decide what it computes, and its dropout.
      has_head: whether it is the class of a masked language model.
      pad_id: the id of the padding.
    """

    architecture: Architecture
    encoder: Encoder
    has_head: bool
    pad_id: int

    @property
    def class_name(self) -> str:
        """As config.json has it."""
        return self.architecture.masked_lm if self.has_head else self.architecture.base

    def prefix(self, stored: Mapping | None = None) -> str:
        """In front of the names of the encoder's weights: of an encoder alone, nothing, or what `stored` has."""
        prefix = f'{self.architecture.prefix}.'
        is_there = stored is not None and any(name.startswith(prefix) for name in stored)
        return prefix if self.has_head or is_there else ''

    def rules(self, prefix: str) -> list[Rule]:
        """The names of all weights that hold parameters."""
        rules = self.architecture.encoder_rules(self.encoder, prefix, self.pad_id)
        return rules + (self.architecture.head_rules(self.encoder) if self.has_head else [])


TOKENIZERS = ('tokenizer.json', 'vocab.txt')  # the latter of ESM-2, which has no other


def tokenizer_file(directory: pathlib.Path) -> pathlib.Path | None:
    """The file of a checkpoint that tells how text is encoded; None where it has none."""
    return next((directory / name for name in TOKENIZERS if (directory / name).is_file()), None)


# ---- In ----------------------------------------------------------------------------------------------------------


def describe(directory: pathlib.Path) -> Checkpoint:
    """What the `config.json` of a directory says.

    Raises:
      FileNotFoundError: without the file.
      ValueError: for another architecture, what has no place here, and a damaged file.
    """
    d = Description.of(directory)
    architecture, has_head = registry.of_description(d)
    encoder, pad_id = architecture.encoder(d)
    return Checkpoint(architecture, encoder, has_head, pad_id)


def read(directory: pathlib.Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A directory, with its parameters as a tree of float32 arrays: `encoder`, and `head` where its class has one.

    Raises:
      FileNotFoundError: when a file is missing.
      ImportError: without the extra `huggingface`.
      ValueError: as `describe`, and for damaged files, missing and unknown weights, weights whose shapes are not those
        of config.json, and a copy of a tied weight that differs from it.
    """
    checkpoint = describe(directory)
    a = checkpoint.architecture
    stored = {a.modern_name(name): array for name, array in weights.read(directory).items()}
    stored = {name: array for name, array in stored.items() if not a.ignored(name)}
    return checkpoint, params_of(checkpoint, stored, f'the weights in {directory}')


def params_of(checkpoint: Checkpoint, stored: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """The parameters from weights by the names of the architecture; messages call these `name`.

    Raises:
      ValueError: as `read`, for the weights.
    """
    a, e = checkpoint.architecture, checkpoint.encoder
    prefix = checkpoint.prefix(stored)
    rules = checkpoint.rules(prefix)
    names.check_shapes(rules, stored, e.num_layers, e.ffn_width, name)
    source = StateDict(stored)
    params = names.read(rules, source, e.num_layers)
    leaves = dict(names.leaves_of(params))
    for copy, path in a.tied(e, prefix).items() if checkpoint.has_head else ():
        source.skip_equal(copy, leaves[path])
    for key, constant in a.constants(e, prefix).items():
        if key in source and not constant.holds(np.asarray(stored[key])):
            raise ValueError(f'{name} have other numbers in {key} than {constant.what}')
        source.skip(key)
    source.check_all_read()
    return params


# ---- Out -------------------------------------------------------------------------------------------------------------


def arrays_of(checkpoint: Checkpoint, params: Mapping) -> dict[str, np.ndarray]:
    """The weights, float32, by the names of the architecture, but for those that are tied to another.

    Raises:
      ValueError: for parameters that have no name, or are missing, or have other shapes than the configuration says.
    """
    a, e, prefix = checkpoint.architecture, checkpoint.encoder, checkpoint.prefix()
    rules = checkpoint.rules(prefix)
    arrays = dict(names.write(rules, params))
    names.check_shapes(rules, arrays, e.num_layers, e.ffn_width, 'the parameters')
    arrays |= {key: constant.array for key, constant in a.constants(e, prefix).items() if constant.is_written}
    arrays |= a.unused(e, prefix)
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def write(
    checkpoint: Checkpoint,
    params: Mapping,
    directory: pathlib.Path,
    *,
    special_ids: Mapping[str, int] | None = None,
    dtype: str = 'float32',
    shard_bytes: int = weights.SHARD_BYTES,
) -> None:
    """Writes `config.json` and the weights.

    Args:
      checkpoint: what is written.
      params: `encoder`, and `head` where the class has one.
      directory: that exists; files of these names are replaced.
      special_ids: keys of config.json besides `pad_token_id`, such as `mask_token_id`.
      dtype: of the weights in the files; numbers that follow from the configuration are float32.
      shard_bytes: the size of the largest file.

    Raises:
      ImportError: without the extra `huggingface`.
      ValueError: as `arrays_of`.
    """
    arrays = arrays_of(checkpoint, params)
    # Frequencies of rotary positions that are rounded to bfloat16 turn late tokens by wrong angles.
    exact = checkpoint.architecture.constants(checkpoint.encoder, checkpoint.prefix())
    weights.write(directory, arrays.items(), dtype, shard_bytes, exact)
    config = config_json(checkpoint, dtype) | dict(special_ids or {})
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def config_json(checkpoint: Checkpoint, dtype: str = 'float32') -> dict[str, Any]:
    """The content of `config.json`."""
    a, e = checkpoint.architecture, checkpoint.encoder
    own = a.own_keys(e)
    return {
        'architectures': [checkpoint.class_name],
        'model_type': a.model_type,
        'dtype': dtype,
        **a.describe(e, checkpoint.pad_id),
        'pad_token_id': checkpoint.pad_id,
        **a.fixed,
        **({OWN_KEY: own} if own else {}),
    }
