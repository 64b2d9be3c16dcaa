"""Pretraining that starts from other parameters: on new text, or under other masks.

They come from another run, `init_from=WORKDIR` or `WORKDIR@STEP`, or its moving average, `ema:WORKDIR`; from a
checkpoint of Hugging Face, `init_from=hf:DIRECTORY` or `hf:NAME`; or are an average of several,
`average:SOURCE,SOURCE,…`, which `--set=init_from=…` gives, because it holds commas.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mlm_jax import config as config_lib
from mlm_jax.config import mixture
from mlm_jax.data import fast_tokenizer
from mlm_jax.data.manifest import Manifest
from mlm_jax.data.tokenizers import AnyTokenizer, Tokenizer, extends
from mlm_jax.files import atomic, buckets
from mlm_jax.files.errors import ConfigError
from mlm_jax.interop.architecture import deciding
from mlm_jax.interop.checkpoint import TOKENIZERS, tokenizer_file
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.parallel import agreement
from mlm_jax.parallel.mesh import replicated
from mlm_jax.parallel.sharding import path_name
from mlm_jax.pretrained import averaging, huggingface, sources
from mlm_jax.training import build, checkpoints
from mlm_jax.training.resuming import reshaping
from mlm_jax.training.state import TrainState, starting_from
from mlm_jax.training.workdir import read_config

# Parameters with a row for each token.
_COUNT_PIECES = ('encoder/token_embedding/embedding', 'head/output_embedding/embedding', 'head/bias')


def pinned(init_from: str, workdir: pathlib.Path) -> str:
    """`init_from` with what it means, for all processes and all times: steps of runs, commits of models on the hub.

    Where the run in `workdir` can have begun with the same name, that is what it has begun with.

    Raises:
      ConfigError: as `sources.pin`.
    """
    if not init_from:
        return ''

    def found() -> str:
        stored = read_config(workdir).init_from if (workdir / 'config.json').exists() else ''
        return stored if sources.can_mean(init_from, stored) else sources.pin(init_from, _newest_step)

    return agreement.from_leader(found)


def _newest_step(run: sources.Source) -> int | None:
    return checkpoints.newest_step(run.directory / 'checkpoints', checkpoints.EMA if run.is_ema else checkpoints.PARAMS)


def check_source(config: ml_collections.ConfigDict, manifest: Manifest) -> None:
    """Checks that the parameters that `config.init_from` names fit this model and this tokenizer.

    Raises:
      ConfigError: with what differs, or when `init_from` is neither a workdir nor a checkpoint, or the extra
        `huggingface` is missing that reads it; nothing where it is ''.
    """
    if not config.init_from:
        return
    source = sources.parse(config.init_from)
    if source.is_random:
        raise ConfigError(f'init_from={source} asks for parameters that have learned nothing: leave init_from empty')
    if source.parts:
        averaging.check(source)
    # The others of an average have the sizes and the tokenizer of the first.
    _check_one(config, manifest, source.members[0][0])


def _check_one(config: ml_collections.ConfigDict, manifest: Manifest, source: sources.Source) -> None:
    if source.is_hugging_face:
        _check_hugging_face(config, manifest, source.on_disk)
        return
    there = averaging.run_config(source)
    different = config_lib.differences(there, config)
    fitted = ('optimizer.', 'sequence_length')  # the optimizer starts afresh, and tables of positions follow the length
    keys = [key for key in reshaping(different) if not key.startswith(fitted)]
    larger = config.vocab_size > there.vocab_size
    if larger:
        keys.remove('vocab_size')  # the tokenizer has been extended, if the last check says so
    if keys:
        lines = '\n'.join(f'  {key}: {different[key][0]!r} there, {different[key][1]!r} here' for key in keys)
        raise ConfigError(
            f'the parameters in init_from={config.init_from} are of another model:\n{lines}\nUse its values'
        )
    tokenizer = source.directory / 'tokenizer.model'
    if larger and _extends(config, manifest, tokenizer, there.vocab_size):
        return
    _check_tokenizer(config, manifest, tokenizer)
    if larger:
        raise ConfigError(
            f'the tokenizer of init_from={config.init_from} is the one of the data, and nothing says what the ids '
            f'beyond its {there.vocab_size} are: set vocab_size={there.vocab_size}, and prepare the data with it, in '
            'another data.directory'
        )


def start_from(source: str, state: TrainState, tokenizer: pathlib.Path) -> TrainState:
    """`state` with the parameters of `source`, laid out as they are in `state`; step and optimizer start afresh.

    A piece that an extended tokenizer has added starts as the mean of the old ones that spell it. Where rows are longer
    than those of `source`, a table of positions goes on from its start, as in Longformer (arXiv 2004.05150, section 5).

    Args:
      source: what `check_source` has found fitting, `pinned`; without a step, the newest checkpoint is read.
      state: fresh, on the mesh.
      tokenizer: of the data, or of the run that starts here.

    Raises:
      FileNotFoundError: without a checkpoint (of that step).
      ConfigError: for a checkpoint of Hugging Face whose weights are not what its description says.
    """
    parsed = sources.parse(source)
    if not parsed.parts:
        return starting_from(state, _params_of(parsed, state.params, tokenizer))
    mean = averaging.Mean()
    for part, weight in parsed.parts:
        mean.add(_params_of(part, state.params, tokenizer), weight)
    return starting_from(state, mean.value)


def _params_of(source: sources.Source, fresh: dict, tokenizer: pathlib.Path) -> dict:
    """The parameters of one checkpoint, fitted to the shapes of `fresh`, and laid out as these."""
    if source.is_hugging_face:
        return _hugging_face_params(source, fresh)
    workdir = source.directory
    saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
    stored = _stored(config_lib.completed(read_config(workdir)), fresh)
    params = saver.restore_params(stored, source.step, checkpoints.EMA if source.is_ema else checkpoints.PARAMS)
    saver.close()
    old_tokenizer = workdir / 'tokenizer.model'
    spelling = functools.cache(lambda: _spelling(*map(Tokenizer.from_file, (tokenizer, old_tokenizer))))

    def fitted(path, old, fresh):
        if old.shape == fresh.shape:
            return old
        if path_name(path) in _COUNT_PIECES:
            return _extended(old, *spelling(), fresh.sharding)
        return _repeated(old, len(fresh), fresh.sharding)

    return jax.tree_util.tree_map_with_path(fitted, params, fresh)


def _stored(config: ml_collections.ConfigDict, fresh: dict) -> dict:
    """What a run has stored: laid out as `fresh`, but whole on every device where it has another shape."""

    def one(old, new):
        sharding = new.sharding if old.shape == new.shape else replicated(new.sharding.mesh)
        return jax.ShapeDtypeStruct(old.shape, new.dtype, sharding=sharding)

    return jax.tree.map(one, build.state_shapes(config).params, fresh)


def _spelling(new: AnyTokenizer, old: AnyTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The old pieces that spell each new one, int32[N, K], and their weights, float32[N, K], which sum to 1."""
    added = new.pieces(range(old.vocabulary.size, new.vocabulary.size))
    start = old.encode('a')[0] if len(old.encode('a')) > 1 else None  # ▁, which stands before a piece within a word
    rows = []
    for piece in added:
        ids = old.encode(piece.replace('▁', ' ').strip())
        inside = not piece.startswith('▁') and len(ids) > 1 and ids[0] == start
        rows.append(ids[1:] if inside else ids)
    longest = max(map(len, rows))
    index, weights = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), np.float32)
    for i, ids in enumerate(rows):
        index[i, : len(ids)], weights[i, : len(ids)] = ids, 1 / max(1, len(ids))
    return index, weights


def _extended(old: jax.Array, index_NxK: np.ndarray, weights_NxK: np.ndarray, sharding) -> jax.Array:
    """`old`, with a row for each new piece."""

    def extend(old):
        return jnp.concatenate([old, jnp.einsum('nk,nk...->n...', weights_NxK, old[index_NxK])])

    return jax.jit(extend, out_shardings=sharding)(old)


def _repeated(old: jax.Array, length: int, sharding) -> jax.Array:
    """The first `length` rows of `old`, written as often as need be."""
    return jax.jit(lambda old: old[np.arange(length) % len(old)], out_shardings=sharding)(old)


def _check_tokenizer(config: ml_collections.ConfigDict, manifest: Manifest, path: pathlib.Path) -> None:
    if atomic.sha256(path) != manifest.tokenizer_sha256 and not _is_export(config, manifest, path):
        raise ConfigError(
            f'the data in {config.data.directory} were not made with the tokenizer of init_from={config.init_from}. '
            f'Prepare them with tokenizer.model={path}, in another data.directory; or with extend:{path} and a larger '
            'vocab_size'
        )


def _is_export(config: ml_collections.ConfigDict, manifest: Manifest, path: pathlib.Path) -> bool:
    """Whether a file is the tokenizer.json that `export` writes for the tokenizer of the data, with the same ids."""
    return path.name == TOKENIZERS[0] and fast_tokenizer.is_export(_tokenizer_of_data(config, manifest), path)


def _tokenizer_of_data(config: ml_collections.ConfigDict, manifest: Manifest) -> AnyTokenizer:
    directory = mixture.parse(config.data.directory)[0].directory
    return Tokenizer.from_file(buckets.path(directory).expanduser() / manifest.tokenizer)


def _extends(config: ml_collections.ConfigDict, manifest: Manifest, path: pathlib.Path, old_size: int) -> bool:
    new, old = _tokenizer_of_data(config, manifest), Tokenizer.from_file(path)
    # Where the embedding of either has rows that no piece uses, nothing says what they are to become.
    return new.vocabulary.size == config.vocab_size and old.vocabulary.size == old_size and extends(new, old)


def _check_hugging_face(config: ml_collections.ConfigDict, manifest: Manifest, directory: pathlib.Path) -> None:
    try:
        there = huggingface.read_encoder_config(directory)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise ConfigError(f'init_from={config.init_from}: {error}') from error
    here, spec = build.encoder_config(config), OBJECTIVES[config.objective]
    if there.positions not in spec.positions:
        others = ' or '.join(name for name, other in OBJECTIVES.items() if there.positions in other.positions)
        raise ConfigError(
            f'init_from={config.init_from} has {there.positions} positions, which the layers have learned to read, and '
            f'{config.objective} has {" or ".join(spec.positions)} ones: it cannot start there. Use objective={others}'
        )
    different = _differences(there, here)
    if different:
        lines = '\n'.join(f'  {key}: {a!r} there, {b!r} here' for key, (a, b) in different.items())
        arguments = ','.join(f'{key}={a}' for key, (a, _) in different.items())
        if 'vocab_size' in different:
            arguments += ', and prepare the data with this vocab_size, in another data.directory'
        raise ConfigError(
            f'the parameters in init_from={config.init_from} are of another model:\n{lines}\nSet {arguments}'
        )
    if here.max_length > there.max_length and (there.positions == 'learned' or there.relative_buckets):
        raise ConfigError(
            f'init_from={config.init_from} has {there.max_length} positions, and rows here have {here.max_length} '
            f'tokens: set sequence_length={there.max_length // config.masking.repeats} or less'
        )
    _check_tokenizer(config, manifest, hugging_face_tokenizer(directory))


def _differences(there: EncoderConfig, here: EncoderConfig) -> dict[str, tuple]:
    """Key → (value there, value here) of all keys in which a run must agree with a checkpoint and does not."""
    # A smaller vocabulary leaves out rows that no piece uses.
    sizes = {'vocab_size': (there.vocab_size, here.vocab_size)} if here.vocab_size > there.vocab_size else {}
    theirs, ours = deciding(there), deciding(here)
    keys = [field.name for field in dataclasses.fields(EncoderConfig) if field.name in theirs | ours]
    values = {f'model.{key}': (theirs.get(key, getattr(there, key)), ours.get(key, getattr(here, key))) for key in keys}
    return sizes | {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def hugging_face_tokenizer(directory: pathlib.Path) -> pathlib.Path:
    """The tokenizer of a checkpoint: its tokenizer.json, or ESM's vocab.txt; ConfigError where it has neither."""
    path = tokenizer_file(directory)
    if path is None:
        raise ConfigError(
            f'{directory} has no {TOKENIZERS[0]}, so nothing tells how its text is to be encoded. '
            'save_pretrained of the fast tokenizer of transformers writes it'
        )
    return path


def _hugging_face_params(source: sources.Source, fresh: dict) -> dict:
    """`fresh`, with the encoder of a checkpoint, and its head where that has the shapes of the one here."""
    try:
        _, stored = huggingface.from_hf(source.on_disk)
    except ValueError as error:
        raise ConfigError(f'init_from={source}: {error}') from error
    encoder, head = stored['encoder'], stored.get('head', {})
    size = len(fresh['encoder']['token_embedding']['embedding'])
    if (unused := len(encoder['token_embedding']['embedding']) - size) and not jax.process_index():
        print(f'left out of {source}: {unused:,} rows of its embedding beyond vocab_size={size}', file=sys.stderr)
    for name in ('position_embedding', 'token_embedding'):  # rows for longer texts, and for ids that no piece has
        if name in encoder:
            encoder[name]['embedding'] = encoder[name]['embedding'][: len(fresh['encoder'][name]['embedding'])]
    if 'bias' in head:
        head['bias'] = head['bias'][:size]
    if 'output_embedding' in head:
        head['output_embedding']['embedding'] = head['output_embedding']['embedding'][:size]

    def shapes(tree):
        return jax.tree.map(lambda leaf: leaf.shape, tree)

    # MAE-LM's head follows its decoder, which may be narrower; and an encoder may come without a head.
    taken = ['encoder'] + ['head'] * ('head' in stored and shapes(stored['head']) == shapes(fresh.get('head')))
    placed = {
        name: jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), stored[name], fresh[name])
        for name in taken
    }
    return {**fresh, **placed}
