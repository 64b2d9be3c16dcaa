"""A trained model as a directory that others use without this package: `transformers`, sentence-transformers."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mlm_jax.data import fast_tokenizer, sequences
from mlm_jax.data.tokenizers import AnyTokenizer
from mlm_jax.files import atomic, buckets, scratch
from mlm_jax.files.buckets import BucketPath
from mlm_jax.files.errors import ConfigError
from mlm_jax.interop import card as card_lib
from mlm_jax.interop import checkpoint as checkpoint_lib
from mlm_jax.interop import comparison, names, registry, sentence_transformers, weights
from mlm_jax.interop.architecture import Encoder
from mlm_jax.interop.checkpoint import Checkpoint
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.objectives.objective import Objective
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.pretrained.sources import RANDOM, Source

_MASKED_EVERY = 7  # in a comparison, of a second copy of each text, every seventh token is masked
_LARGEST_OUTPUTS = 1 << 27  # numbers in the outputs that are compared: 512 MiB of float32


class Trained(Protocol):
    """What is read of a `pretrained.model.Model`, whose attributes these are."""

    @property
    def source(self) -> Source: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def params(self) -> dict: ...
    @property
    def tokenizer(self) -> AnyTokenizer: ...
    @property
    def config(self) -> ml_collections.ConfigDict | None: ...
    @property
    def step(self) -> int | None: ...
    @property
    def objective_name(self) -> str: ...
    @property
    def max_length(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far an export is from transformers.

    Attributes:
      difference: the largest difference of logits, or of an encoder's outputs.
      num_texts: that were read, each without masks and with some.
      num_tokens: of these rows.
    """

    difference: float
    num_texts: int
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class Export:
    """What an export will be, before anything is written.

    Attributes:
      checkpoint: the class and its configuration.
      params: `encoder`, and `head` where the class has one; numpy, in the dtype of the files but stored as float32.
      dtype: of the weights in the files.
      notes: what a user should know, in sentences.
    """

    checkpoint: Checkpoint
    params: dict
    dtype: str
    notes: tuple[str, ...]


def plan(model: Trained, architecture: str = '', dtype: str = 'float32') -> Export:
    """The class that a model can be written as, and its parameters.

    Args:
      model: of any objective.
      architecture: a `model_type` of transformers; '' keeps that of a model of transformers, and otherwise takes the
        first that fits.
      dtype: of the weights in the files, a key of `weights.DTYPES`.

    Raises:
      ConfigError: where no class of transformers computes what the model does; and for a model of repeated tokens.
    """
    config, spec = model.config, OBJECTIVES[model.objective_name]
    if config is not None and config.masking.repeats > 1:
        raise ConfigError(
            f'{model.source} was trained on rows in which every token stands {config.masking.repeats} times, which no '
            'class of transformers reads. A run with masking.repeats=1 can be exported'
        )
    encoder = Encoder(**dataclasses.asdict(model.objective.config))
    has_head = spec.head_on_encoder and ('head' in model.params or (encoder.head == 'plain' and encoder.tied_head))
    if not architecture and model.source.is_hugging_face:
        architecture = checkpoint_lib.describe(model.source.on_disk).architecture.model_type
    try:
        home = registry.home_of(encoder, architecture, has_head)
    except ValueError as error:
        raise ConfigError(f'{model.source}: {error}') from None
    pad_id = model.tokenizer.vocabulary.pad_id
    checkpoint = Checkpoint(home, encoder, has_head, pad_id)
    kept = {part: model.params[part] for part in ('encoder', *['head'] * has_head) if part in model.params}
    params = jax.tree.map(lambda x: np.asarray(x).astype(weights.DTYPES[dtype]).astype(np.float32), kept)
    notes = (*([spec.export_note] if spec.export_note else []), *home.notes(encoder, pad_id))
    return Export(checkpoint, params, dtype, notes)


def write(
    model: Trained,
    export: Export,
    directory: str | pathlib.Path,
    *,
    pooling: str = 'mean',
    shard_bytes: int = weights.SHARD_BYTES,
    reports: Sequence[pathlib.Path] = (),
    texts: Sequence[str] = (),
) -> Comparison | None:
    """Writes a directory with everything that others need, or nothing.

    Args:
      model: whose tokenizer and run are described.
      export: what `plan` has returned for it.
      directory: made; where it exists, it must be empty.
      pooling: of sentence-transformers: a key of `sentence_transformers.MODES`.
      shard_bytes: the size of the largest file of weights.
      reports: further directories in which there are results on this model, for the card.
      texts: on which the result is compared with transformers; none compares nothing.

    Returns:
      What a comparison with transformers has found; None without texts.

    Raises:
      ConfigError: when the directory is not empty, the tokenizer has no form there, or the comparison fails.
      ImportError: without the extra `huggingface`.
    """
    directory = buckets.path(directory).expanduser().absolute()
    with _whole(directory) as partial:
        v, e = model.tokenizer.vocabulary, export.checkpoint.encoder
        ids = {'bos': v.cls_id, 'eos': v.sep_id, 'cls': v.cls_id, 'sep': v.sep_id, 'mask': v.mask_id}
        checkpoint_lib.write(
            export.checkpoint, export.params, partial, special_ids={f'{name}_token_id': i for name, i in ids.items()},
            dtype=export.dtype, shard_bytes=shard_bytes,
        )  # fmt: skip
        fast_tokenizer.write_fast_tokenizer(model.tokenizer, partial, model.max_length)
        sentence_transformers.write(partial, e.width, model.max_length, pooling)
        (partial / card_lib.FILE).write_text(_card(model, export, directory.name, pooling, reports), encoding='utf-8')
        return compare(model, export, partial, texts) if texts else None


def compare(model: Trained, export: Export, directory: pathlib.Path, texts: Sequence[str]) -> Comparison:
    """Compares outputs with those of transformers, with and without masks, padding included, in float32.

    All texts are compared as ids; the first ones, as many as memory allows, as outputs.

    Raises:
      ConfigError: where it is above `comparison.TOLERANCE`, the tokenizer gives other ids, or transformers is missing.
    """
    tokenizer = model.tokenizer
    rows = [
        sequences.join([ids[: model.max_length - 2]], tokenizer.vocabulary) for ids in tokenizer.encode_batch(texts)
    ]
    theirs = comparison.token_ids(directory, texts)
    for text, row, ids in zip(texts, rows, theirs, strict=True):
        if len(ids) <= model.max_length and ids != row.tolist():
            raise ConfigError(f'AutoTokenizer reads {text[:80]!r} as {ids[:20]} …, and not as {row[:20].tolist()} …')
    e = export.checkpoint.encoder
    per_token = e.vocab_size if export.checkpoint.has_head else e.width
    count = max(1, _LARGEST_OUTPUTS // (2 * per_token * max(map(len, rows))))
    rows = rows[:count]
    every = [*rows, *(_masked(row, tokenizer.vocabulary.mask_id) for row in rows)]
    tokens_BxT = sequences.pad(every, len(every), max(map(len, every)), tokenizer.vocabulary.pad_id)
    real_BxT = np.arange(tokens_BxT.shape[1]) < np.array([[len(row)] for row in every])
    theirs_BxTxN = comparison.outputs(directory, tokens_BxT, real_BxT, export.checkpoint.has_head)
    ours_BxTxN = outputs(export, tokens_BxT, real_BxT)
    difference = float(np.abs(theirs_BxTxN - ours_BxTxN)[real_BxT].max())
    if not difference <= comparison.TOLERANCE:
        raise ConfigError(
            f'transformers computes other numbers: they differ by up to {difference:.2g}, and '
            f'{comparison.TOLERANCE:g} is allowed. Nothing was written'
        )
    return Comparison(difference, len(rows), int(real_BxT.sum()))


def outputs(export: Export, tokens_BxT: np.ndarray, real_BxT: np.ndarray) -> np.ndarray:
    """f32[B, T, V] or f32[B, T, d]: as `comparison.outputs`, computed here in float32."""
    e = dataclasses.replace(
        EncoderConfig(**vars(export.checkpoint.encoder)),
        dtype='float32',
        attention_backend='xla',
        remat='none',
        scan_unroll=1,
    )
    module, segments_BxT = MLM(e), jnp.asarray(real_BxT, jnp.int32)
    inputs_BxT = jnp.asarray(tokens_BxT, jnp.int32)
    variables = {'params': export.params}
    if not export.checkpoint.has_head:
        return np.asarray(jax.jit(lambda v: module.apply(v, inputs_BxT, segments_BxT, method='encode'))(variables))
    every_BxT = jnp.broadcast_to(jnp.arange(inputs_BxT.shape[1], dtype=jnp.int32), inputs_BxT.shape)
    batch = MaskedBatch(inputs_BxT, inputs_BxT, every_BxT, jnp.ones(inputs_BxT.shape), segments_BxT)
    return np.asarray(jax.jit(lambda v: module.apply(v, batch, method='logits'))(variables))


def _masked(row: np.ndarray, mask_id: int) -> np.ndarray:
    row = row.copy()
    row[_MASKED_EVERY // 2 : -1 : _MASKED_EVERY] = mask_id
    return row


def check_directory(directory: pathlib.Path) -> None:
    """Raises ConfigError where something is in the way of an export."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f'{directory} is not empty: name another --output, or delete it')


@contextlib.contextmanager
def _whole(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory beside that of the given name, which gets this name only if all goes well."""
    check_directory(directory)
    if isinstance(directory, BucketPath):
        with scratch.directory() as partial:
            yield partial
            buckets.upload(partial, directory, last=checkpoint_lib.CONFIG_FILE)  # without it, there is no model
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f'.{directory.name}.{os.getpid()}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in partial.rglob('*'):
            if path.is_file():
                with path.open('rb') as file:
                    os.fsync(file.fileno())
        os.replace(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    atomic.sync_directory(directory.parent)


def _card(model: Trained, export: Export, name: str, pooling: str, reports: Sequence[pathlib.Path]) -> str:
    e, v = export.checkpoint.encoder, model.tokenizer.vocabulary
    leaves: Mapping = dict(names.leaves_of(export.params))
    card = card_lib.Card(
        name=name,
        class_name=export.checkpoint.class_name,
        has_head=export.checkpoint.has_head,
        num_parameters=sum(leaf.size for leaf in leaves.values()),
        encoder={
            'layers': e.num_layers, 'width': e.width, 'heads': e.num_heads, 'hidden units of an MLP': e.ffn_width,
            'vocabulary': e.vocab_size, 'tokens of the longest text': model.max_length, 'weights': export.dtype,
        },
        pooling=pooling,
        notes=export.notes,
        mask=model.tokenizer.id_to_piece(v.mask_id),
    )  # fmt: skip
    source = model.source
    if source.is_random:
        return card_lib.of_random(card, str(source).removeprefix(RANDOM), model.config)
    if model.config is None:
        return card_lib.of_sources(card, _shares(source)) if source.parts else card_lib.of_source(card, str(source))
    workdir = source.directory
    reports = [*card_lib.reports_beside(workdir), *reports]
    return card_lib.of_run(card, workdir, model.step, model.config, reports, _average(model))


def _average(model: Trained) -> card_lib.Average | None:
    """What the card tells of parameters that are an average; None where they are not."""
    source = model.source
    if source.parts:
        text = f'the mean, with these shares, of {_shares(source)}; the rows below tell of the first'
        return card_lib.Average(str(source), text)
    if source.is_ema and model.config is not None:
        decay = model.config.ema.decay
        return card_lib.Average(str(source), f'their moving average of decay {decay:g} over the updates', 'eval_ema/')
    return None


def _shares(source: Source) -> str:
    """The parts of an average, and how much each counts."""
    total = sum(weight for _, weight in source.parts)
    return ', '.join(f'{part} ({weight / total:.3g})' for part, weight in source.parts)
