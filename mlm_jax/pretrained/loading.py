"""A trained model from its workdir."""

import dataclasses
import pathlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import ml_collections
from jax.sharding import Mesh

from mlm_jax.data import manifest, tables
from mlm_jax.data.shards import Shards
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.tables import Tables
from mlm_jax.parallel.mesh import replicated
from mlm_jax.pretrained import huggingface, warm_start
from mlm_jax.training import build, checkpoints, runtime
from mlm_jax.training.state import abstract_state, create_state
from mlm_jax.training.workdir import read_config


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What a run has learned so far.

    Attributes:
      config: of the run, with the attention backend that runs everywhere.
      tokenizer: of its text.
      run: its functions; `run.objective` is the Linen module. Where the prepared data are gone, `run.masking` lacks the
        tables that some units need.
      params: on the mesh it was loaded onto.
      step: updates done.
    """

    config: ml_collections.ConfigDict
    tokenizer: Tokenizer
    run: build.Run
    params: dict
    step: int

    def held_out_rows(self) -> Shards:
        """The held-out rows of the data that the run was trained on.

        Raises:
          ConfigError: when the data are gone, or there are no such rows.
        """
        directory = self.config.data.directory
        if not manifest.load(directory).split('validation').rows:
            raise ConfigError(
                f'{directory} has no held-out rows: raise data.validation_percent, or name a data.validation_corpus'
            )
        return Shards(directory, 'validation', verify=True)


def use_compilation_cache_of(workdirs: Sequence[str]) -> None:
    """Keeps compiled programs where the first of these runs keeps its own; ConfigError when it is none."""
    runtime.use_compilation_cache(read_config(pathlib.Path(workdirs[0]).expanduser()).compilation_cache)


def load(workdir: pathlib.Path, mesh: Mesh, step: int | None = None) -> TrainedModel:
    """Loads a checkpoint of a run, parameters only, replicated on `mesh`.

    Args:
      workdir: of the run.
      mesh: any mesh, whatever the run was trained on.
      step: of the checkpoint; None takes the newest, and 0 is how the run began, made anew from its seed.

    Raises:
      ConfigError: when `workdir` is none.
      FileNotFoundError: without a checkpoint (of that step).
    """
    config = read_config(workdir)
    config.model.attention_backend = 'xla'  # the others need the accelerator that the run was trained on
    tokenizer = Tokenizer.from_file(workdir / 'tokenizer.model')
    vocabulary = tokenizer.vocabulary.padded(config.vocab_size)
    run = build.make_run(config, vocabulary, 1.0, _tables(config))
    if step == 0:
        state = create_state(run.init, mesh, 'dp')
        if config.init_from:
            state = warm_start.start_from(config.init_from, state, workdir / 'tokenizer.model')
        return TrainedModel(config, tokenizer, run, state.params, step)
    saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
    step = saver.checked(step)
    params = saver.restore_params(abstract_state(run.init, mesh, 'dp').params, step)
    saver.close()
    return TrainedModel(config, tokenizer, run, jax.block_until_ready(params), step)


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """What fine-tuning takes of a model.

    Attributes:
      objective: the Linen module, of which `encode` is used.
      params: its parameters `encoder`; None where they are to be drawn at random.
      tokenizer: of its text.
      step: updates of the checkpoint; None where there are none to count.
    """

    objective: nn.Module
    params: dict | None
    tokenizer: Tokenizer
    step: int | None

    @property
    def max_length(self) -> int:
        """Tokens of the rows that it was trained on, or positions that it knows."""
        return self.objective.config.max_length

    @property
    def takes_any_length(self) -> bool:
        """Whether rows may be longer than those it was trained on: nothing in it counts positions in a table."""
        c = self.objective.config
        return c.positions != 'learned' and not c.relative_buckets


RANDOM = 'random:'


def load_encoder(source: str, mesh: Mesh) -> PretrainedEncoder:
    """Loads an encoder, replicated on `mesh`.

    Args:
      source: the workdir of a run of any objective, WORKDIR or WORKDIR@STEP; hf:DIRECTORY, a checkpoint of Hugging Face
        with its tokenizer.json; or random:SOURCE, the same model without what it has learned.
      mesh: any mesh.

    Raises:
      ConfigError: when there is no such model.
      FileNotFoundError: without a checkpoint (of that step).
      ImportError: without the extra `huggingface`, where that is needed.
    """
    if source.startswith(RANDOM):
        there = load_encoder(source.removeprefix(RANDOM), mesh)
        return dataclasses.replace(there, params=None, step=None)
    if source.startswith(warm_start.HUGGING_FACE):
        directory = pathlib.Path(source.removeprefix(warm_start.HUGGING_FACE)).expanduser()
        try:
            objective, params = huggingface.from_hf(directory)
        except ValueError as error:
            raise ConfigError(f'{source}: {error}') from error
        tokenizer = Tokenizer.from_file(warm_start.hugging_face_tokenizer(directory))
        if tokenizer.vocabulary.size > objective.config.vocab_size:
            raise ConfigError(
                f'{source}: its tokenizer has {tokenizer.vocabulary.size:,} pieces, and the model '
                f'{objective.config.vocab_size:,} embeddings: they do not belong together'
            )
        return PretrainedEncoder(objective, jax.device_put(params['encoder'], replicated(mesh)), tokenizer, None)
    workdir, at, step = source.rpartition('@')
    if at and step.isdecimal():
        model = load(pathlib.Path(workdir).expanduser(), mesh, int(step))
    else:
        model = load(pathlib.Path(source).expanduser(), mesh)
    if model.config.masking.repeats > 1:
        raise ConfigError(
            f'{source} was trained on rows in which every token stands {model.config.masking.repeats} times; '
            'fine-tuning reads each once, and would say nothing of it'
        )
    return PretrainedEncoder(model.run.objective, model.params['encoder'], model.tokenizer, model.step)


def _tables(config: ml_collections.ConfigDict) -> Tables | None:
    """Of the data of the run, where they are still there: evaluation has masks of its own."""
    try:
        return tables.load(config, manifest.load(config.data.directory))
    except ConfigError:
        return None
