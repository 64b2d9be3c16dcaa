"""Trained models by their names (`pretrained/sources.py`)."""

import dataclasses
import os

import jax
import ml_collections
from jax.sharding import Mesh

from mlm_jax import config as config_lib
from mlm_jax.data import prepared_data
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.files import buckets
from mlm_jax.files.errors import ConfigError
from mlm_jax.interop import checkpoint as checkpoint_lib
from mlm_jax.masking.tables import Tables
from mlm_jax.objectives.mlm import MLM
from mlm_jax.parallel.mesh import make_mesh, replicated
from mlm_jax.pretrained import averaging, huggingface, sources, warm_start
from mlm_jax.pretrained.model import Model
from mlm_jax.pretrained.sources import Source
from mlm_jax.training import build, checkpoints, runtime
from mlm_jax.training.state import abstract_state, create_state, example_batch


def load(source: str | os.PathLike | Source, mesh: Mesh | None = None, data_directory: str = '') -> Model:
    """Loads a model, its parameters replicated on `mesh`.

    Args:
      source: WORKDIR, WORKDIR@STEP, ema:…, hf:…, random:… or average:…, as `pretrained/sources.py` says.
      mesh: any mesh, whatever the model was trained on; None takes all devices.
      data_directory: of the prepared rows of the run, where they are no longer, or are seen from here, where its
        `data.directory` says. It is ignored for checkpoints of Hugging Face, which have no rows.

    Raises:
      ConfigError: when there is no such model, or it is damaged, or models to be averaged differ.
      FileNotFoundError: without a checkpoint (of that step).
      ImportError: without the extra `huggingface`, where that is needed.
    """
    if not isinstance(source, Source):
        source = sources.parse(str(source) if buckets.is_bucket(source) else os.fspath(source))
    mesh = make_mesh() if mesh is None else mesh
    with jax.set_mesh(mesh):
        return (_load_average if source.parts else _load_one)(source, mesh, data_directory)


def use_compilation_cache_of(source: Source) -> None:
    """Keeps compiled programs where that run keeps its own; ConfigError when there is no such run."""
    config = config_lib.default_config() if source.is_hugging_face else averaging.run_config(source)
    runtime.use_compilation_cache(config.compilation_cache)


def check(source: Source) -> None:
    """Raises the errors of `load` that need no parameters.

    These are those for a workdir that is none, a step without a checkpoint, and averages of two models.
    """
    if source.parts:
        averaging.check(source)
    elif source.is_hugging_face:
        warm_start.hugging_face_tokenizer(source.on_disk)
    else:
        averaging.run_config(source)
    for member, _ in source.members:
        if not (member.is_hugging_face or member.is_random or member.step == 0):
            checkpoints.check_step(member.directory / 'checkpoints', member.step)


def _load_average(source: Source, mesh: Mesh, data_directory: str) -> Model:
    averaging.check(source)
    mean, first = averaging.Mean(), None
    for part, weight in source.parts:
        model = _load_one(part, mesh, data_directory)
        mean.add(model.params, weight)
        first = first or dataclasses.replace(model, source=source, params={}, step=None)
        del model  # its parameters, before the next are read
    assert first is not None
    return dataclasses.replace(first, params=jax.block_until_ready(mean.value))


def _load_one(source: Source, mesh: Mesh, data_directory: str) -> Model:
    return _load_hugging_face(source, mesh) if source.is_hugging_face else _load_run(source, mesh, data_directory)


def _load_run(source: Source, mesh: Mesh, data_directory: str) -> Model:
    workdir = source.directory
    config = config_lib.completed(averaging.run_config(source))
    config.model.attention_backend = 'xla'  # the others need the accelerator that the run was trained on
    config.data.directory = data_directory or config.data.directory
    tokenizer = Tokenizer.from_file(workdir / 'tokenizer.model')
    vocabulary = tokenizer.vocabulary.padded(config.vocab_size)
    run = build.make_run(config, vocabulary, config.batch_size, _tables(config))
    params, step = _params_of_run(source, config, run, mesh)
    return Model(source, run.objective, params, tokenizer, mesh, config, step, run)


def _params_of_run(
    source: Source, config: ml_collections.ConfigDict, run: build.Run, mesh: Mesh
) -> tuple[dict, int | None]:
    if source.is_random:
        return jax.jit(lambda: run.init().params, out_shardings=replicated(mesh))(), None
    if source.step == 0:
        state = create_state(run.init, mesh, 'dp')
        if config.init_from:
            state = warm_start.start_from(config.init_from, state, source.directory / 'tokenizer.model')
        return state.params, 0
    saver = checkpoints.Checkpoints(source.directory / 'checkpoints', read_only=True)
    item = checkpoints.EMA if source.is_ema else checkpoints.PARAMS
    step = saver.checked(source.step, (item,))
    params = saver.restore_params(abstract_state(run.init, mesh, 'dp').params, step, item)
    saver.close()
    return jax.block_until_ready(params), step


def _load_hugging_face(source: Source, mesh: Mesh) -> Model:
    try:
        if source.is_random:
            objective = MLM(huggingface.read_encoder_config(source.on_disk))
            params = jax.jit(lambda: objective.init(jax.random.key(0), example_batch(8, 1))['params'])()
            if not checkpoint_lib.describe(source.on_disk).has_head:
                params.pop('head', None)
        else:
            objective, params = huggingface.from_hf(source.on_disk)
    except ValueError as error:
        raise ConfigError(f'{source}: {error}') from error
    tokenizer = Tokenizer.from_file(warm_start.hugging_face_tokenizer(source.on_disk))
    if tokenizer.vocabulary.size > objective.config.vocab_size:
        raise ConfigError(
            f'{source}: its tokenizer has {tokenizer.vocabulary.size:,} pieces, and the model '
            f'{objective.config.vocab_size:,} embeddings: they do not belong together'
        )
    return Model(source, objective, jax.device_put(params, replicated(mesh)), tokenizer, mesh)


def _tables(config: ml_collections.ConfigDict) -> Tables | None:
    """Of the data of the run, where they are still there: evaluation has masks of its own."""
    try:
        return prepared_data.load(config.data).tables(config.masking)
    except ConfigError:
        return None
