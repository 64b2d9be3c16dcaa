"""A trained model: what `mlm_jax.load` returns, and what the programs use."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import warnings
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mlm_jax.data import prepared_data, sequences
from mlm_jax.data.rows import RowSource
from mlm_jax.data.tokenizer_json import JSONTokenizer
from mlm_jax.data.tokenizers import AnyTokenizer
from mlm_jax.files import buckets
from mlm_jax.files.errors import ConfigError, MissingDataError
from mlm_jax.files.progress import bar
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models import pooling as pooling_lib
from mlm_jax.objectives.objective import Objective
from mlm_jax.parallel.sharding import path_name
from mlm_jax.pretrained import batches, exporting
from mlm_jax.pretrained.pseudo_likelihood import PseudoLikelihood
from mlm_jax.pretrained.sources import Source
from mlm_jax.training import build

MASK = '[MASK]'
SMALLEST_STEP = 4  # between the lengths that rows are padded to


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained encoder of any objective, with its tokenizer, on the devices of a mesh.

    Attributes:
      source: its name, taken apart.
      objective: the Linen module; `objective.apply({'params': params}, …, method='encode')` and so on.
      params: of the objective, float32, whole on each device.
      tokenizer: of its text.
      mesh: the rows of batches are split over it.
      config: of the run, with the attention backend that runs everywhere; None of a checkpoint of Hugging Face.
      step: updates done; None where there are none to count: of `hf:`, `random:` and `average:`.
      run: the functions of the run, None where `config` is. Where the prepared data are gone, `run.masking` lacks the
        tables that some units need.
    """

    source: Source
    objective: Objective
    params: dict
    tokenizer: AnyTokenizer
    mesh: Mesh
    config: ml_collections.ConfigDict | None = None
    step: int | None = None
    run: build.Run | None = None

    def require_run(self) -> tuple[ml_collections.ConfigDict, build.Run]:
        """The configuration and the functions of the run; ConfigError for a model that does not come from a run."""
        if self.config is None or self.run is None:
            raise ConfigError(f'{self.source} is not a run, and has neither masks nor held-out rows: give a workdir')
        return self.config, self.run

    def fingerprint(self) -> str:
        """What tells the parameters from others under the same name: a hash of them, of `random:` of their shapes."""
        found = hashlib.blake2b(digest_size=16)
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            found.update(f'{path_name(path)} {leaf.dtype} {leaf.shape}'.encode())
            if not self.source.is_random:
                found.update(np.ascontiguousarray(leaf).data)
        return found.hexdigest()

    def prepared_data(self) -> prepared_data.PreparedData:
        """The data that the run was trained on.

        Raises:
          ConfigError: when they are gone, or were prepared anew with another tokenizer, whose ids mean other tokens, or
            in rows of another length.
        """
        config, _ = self.require_run()
        try:
            data = prepared_data.load(config.data)
        except MissingDataError:
            raise ConfigError(
                f'{self.source} reads prepared rows in {config.data.directory!r}, where there are none, as seen from '
                f'{pathlib.Path.cwd()}. If they lie elsewhere now, name their directory: --data_directory=DIRECTORY '
                '(in Python, load(…, data_directory=…))'
            ) from None
        if not data.are_of(self.source.directory / 'tokenizer.model'):
            raise ConfigError(
                f'{self.source} was trained with another tokenizer than that of {data.tokenizer.parent}, which was '
                'prepared anew since. Put the former rows back, or give a model that was trained on these'
            )
        if data.sequence_length != config.sequence_length:
            raise ConfigError(
                f'{self.source} was trained on rows of {config.sequence_length} tokens, and those of '
                f'{config.data.directory} have {data.sequence_length}'
            )
        return data

    @property
    def objective_name(self) -> str:
        """As the key `objective` has it."""
        return self.config.objective if self.config else 'mlm'

    @property
    def repeats(self) -> int:
        """How often each token of a text stands in a row: once, but in repeated MLM."""
        return self.config.masking.repeats if self.config else 1

    @property
    def max_length(self) -> int:
        """Tokens of the longest text, with [CLS] and [SEP]: those of a row in training, or positions that it knows."""
        return self.objective.config.max_length // self.repeats

    @property
    def takes_any_length(self) -> bool:
        """Whether rows may be longer than those it was trained on: nothing in it counts positions in a table."""
        c = self.objective.config
        return c.positions != 'learned' and not c.relative_buckets

    @property
    def separators(self) -> int:
        """How many [SEP] stand between the texts of a pair: of `hf:`, as many as its tokenizer.json puts there."""
        if self.source.is_hugging_face and isinstance(self.tokenizer, JSONTokenizer):
            return self.tokenizer.separators
        return sequences.SEPARATORS

    def encode(
        self, texts: Iterable[str], pooling: str = 'mean', batch_size: int | None = None, progress: bool = False
    ) -> np.ndarray:
        """One vector for each text, float32[N, d], in the order of the texts; those of no texts are float32[0, d].

        Each text is a row of its own, `[CLS] text [SEP]`, so its vector does not depend on the texts beside it. Texts
        that are longer than `max_length` are cut at their end, with a warning that counts them.

        Args:
          texts: to encode; not one string.
          pooling: 'mean', over all tokens of the row, or 'cls', the vector of [CLS]. Rows packed with documents have a
            [CLS] for each document only, so short pretraining teaches it little.
          batch_size: rows of a batch, rounded up to a multiple of the devices; None chooses by device and length.
          progress: whether a bar is shown.

        Raises:
          TypeError: for one string, and for texts that are no strings.
          ConfigError: for another pooling.
          FloatingPointError: when a vector is not finite.
        """
        texts = _checked(texts)
        if pooling not in pooling_lib.POOLINGS:
            raise ConfigError(f'pooling={pooling!r} must be {" or ".join(pooling_lib.POOLINGS)}')
        rows = self._rows(texts)
        vectors_Nxd = np.zeros((len(rows), self.objective.config.width), np.float32)
        lengths_N = np.array([len(row) for row in rows], np.int64)
        order_N = np.argsort(-lengths_N, kind='stable')  # the longest first: a lack of memory shows at once
        params, start = {'encoder': self.params['encoder']}, 0
        pending: list = []
        with jax.set_mesh(self.mesh), bar(total=len(rows), unit=' texts', disable=not progress) as shown:
            while start < len(rows) or pending:
                if start < len(rows):
                    length = sequences.padded_length(int(lengths_N[order_N[start]]), SMALLEST_STEP, self.max_length)
                    size = self._batch_size(self.repeats * length, len(rows), batch_size)
                    part = order_N[start : start + size]
                    tokens_BxT = sequences.pad([rows[i] for i in part], size, length, self.tokenizer.vocabulary.pad_id)
                    pending.append((part, self._pooled(params, tokens_BxT, pooling)))
                    start += size
                if len(pending) > 1 or start >= len(rows):  # the device works on one batch while the other is fetched
                    part, found_Bxd = pending.pop(0)
                    vectors_Nxd[part] = np.asarray(found_Bxd)[: len(part)]
                    shown.update(len(part))
        if not np.isfinite(vectors_Nxd).all():
            raise FloatingPointError(f'{self.source} gives vectors that are not finite: its parameters have diverged')
        return vectors_Nxd

    def fill_mask(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """The most likely pieces for each '[MASK]' in `text`, with their probabilities, the most likely first.

        Args:
          text: with one '[MASK]' or more, or what the tokenizer calls it.
          top: how many pieces for each.

        Raises:
          ConfigError: for a text without '[MASK]' or too long, or more pieces than there are.
        """
        self.check_has_head()
        v, repeats = self.tokenizer.vocabulary, self.repeats
        if not 1 <= top <= v.num_ordinary:
            raise ConfigError(f'top={top}: the vocabulary has {v.num_ordinary} pieces that can be filled in')
        ids = tokens_with_masks(self.tokenizer, text)
        if len(ids) > self.max_length:
            raise ConfigError(f'the text has {len(ids)} tokens; this model takes {self.max_length} at most')
        length = repeats * sequences.padded_length(len(ids), SMALLEST_STEP, self.max_length)
        tokens_1xT = sequences.pad([np.repeat(ids, repeats)], 1, length, v.pad_id)
        masked = np.flatnonzero(tokens_1xT == v.mask_id)
        # Numbers of masks are rounded up, too, to powers of two: a program is compiled for each.
        count = repeats * (1 << (len(masked) // repeats - 1).bit_length())
        positions_1xM = np.full((1, count), length, np.int32)
        positions_1xM[0, : len(masked)] = masked
        special_ids = tuple(v.padded(self.objective.config.vocab_size).special_ids)
        with jax.set_mesh(self.mesh):
            objective = self.objective.at_any_ratio()  # a text may have more masks than rows of the run
            found = _fill(objective, special_ids, v.pad_id, repeats, top, self.params, tokens_1xT, positions_1xM)
            probability, token = (x[: len(masked) // repeats] for x in jax.device_get(found))
        return [
            [(self.tokenizer.id_to_piece(t), float(p)) for t, p in zip(tokens, ps, strict=True)]
            for tokens, ps in zip(token, probability, strict=True)
        ]

    def log_likelihood(self, texts: Iterable[str], within_word: bool = False, progress: bool = False) -> np.ndarray:
        """float64[N]: the pseudo-log-likelihood of each text in nats, as `PseudoLikelihood` defines it.

        It is the sum over the tokens of log p(token | all others), and grows with their number: divide it to compare
        texts of different lengths.

        Args:
          texts: to score; not one string.
          within_word: masks the later pieces of a word together with each piece.
          progress: whether a bar is shown.

        Raises:
          TypeError: for one string, and for texts that are no strings.
          ConfigError: when a text is too long, or holds no text; or the model gives single tokens no probability.
          FloatingPointError: when one is not finite.
        """
        texts = _checked(texts)
        if not texts:
            return np.zeros(0)
        self.check_has_head()
        scorer = PseudoLikelihood(self.objective, self.tokenizer, texts, repeats=self.repeats, within_word=within_word)
        with jax.set_mesh(self.mesh):
            scorer.compile(self.params, self.mesh)
            return scorer.scores(self.params, 'likelihoods' if progress else '')

    def export(self, directory: str | os.PathLike, dtype: str = 'float32', pooling: str = 'mean') -> str:
        """Writes the model as a directory of transformers, with its tokenizer and a card, as `mlm_jax.export` does.

        Args:
          directory: made; where it exists, it must be empty.
          dtype: of the weights in the files: 'float32' or 'bfloat16'.
          pooling: of sentence-transformers: 'mean' or 'cls'.

        Returns:
          The class of transformers that computes it.

        Raises:
          ConfigError: where no class of transformers computes what this model does, and for a directory with files.
          ImportError: without the extra `huggingface`.
        """
        export = exporting.plan(self, dtype=dtype)
        exporting.write(self, export, buckets.path(directory), pooling=pooling)
        return export.checkpoint.class_name

    def held_out_rows(self) -> RowSource:
        """The held-out rows of the data that the run was trained on; of a mixture, in turn by its shares.

        Raises:
          ConfigError: when the data are gone, or there are no such rows.
        """
        return self.prepared_data().held_out_rows()

    def check_has_head(self) -> None:
        """Raises ConfigError for an encoder of Hugging Face without a prediction head."""
        c = self.objective.config
        has_parameters = c.head == 'dense' or not c.tied_head
        if self.config is None and has_parameters and 'head' not in self.params:
            raise ConfigError(
                f'{self.source} is an encoder alone: without a prediction head, it says nothing about masked tokens. '
                'Give a checkpoint of a class …ForMaskedLM'
            )

    def _rows(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32[n] of each text, cut at `max_length`."""
        room = self.max_length - 2
        pieces = self.tokenizer.encode_batch(texts) if texts else []
        if too_long := sum(len(ids) > room for ids in pieces):
            warnings.warn(
                f'{too_long:,} of {len(texts):,} texts are cut at {self.max_length} tokens, the most that this model '
                'takes',
                stacklevel=3,
            )
        return [sequences.join([ids[:room]], self.tokenizer.vocabulary) for ids in pieces]

    def _batch_size(self, length: int, num_rows: int, wanted: int | None) -> int:
        if wanted is None:
            return batches.batch_size(self.mesh, length, num_rows)
        shards = batches.num_shards(self.mesh)
        return -(-max(1, wanted) // shards) * shards

    def _pooled(self, params: dict, tokens_BxT: np.ndarray, pooling: str) -> jax.Array:
        pad_id = self.tokenizer.vocabulary.pad_id
        return _encode(self.objective, pooling, self.repeats, pad_id, params, batches.place(tokens_BxT, self.mesh))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _encode(
    objective: Objective, pooling: str, repeats: int, pad_id: int, params: dict, tokens_BxT: jax.Array
) -> jax.Array:
    """f32[B, d], whole on each device of the mesh."""
    segments_BxT = (tokens_BxT != pad_id).astype(jnp.int32)

    def encode(*rows: jax.Array, at_BxM: jax.Array | None) -> jax.Array:
        return jnp.asarray(objective.apply({'params': params}, *rows, method='encode', at_BxM=at_BxM))

    x_Bxd = pooling_lib.row_vectors(encode, tokens_BxT, segments_BxT, pooling, repeats=repeats)
    return jax.lax.with_sharding_constraint(x_Bxd, PartitionSpec())


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _fill(
    objective: Objective,
    special_ids: tuple[int, ...],
    pad_id: int,
    repeats: int,
    top: int,
    params: dict,
    tokens_1xT: jax.Array,
    positions_1xM: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """f32[M / repeats, top], probabilities in descending order, and int32[M / repeats, top], the pieces that have them.

    What is found for slots behind the last masked position means nothing.
    """
    weights_1xM = (positions_1xM < tokens_1xT.shape[1]).astype(jnp.float32)
    segments_1xT = (tokens_1xT != pad_id).astype(jnp.int32)
    batch = MaskedBatch(tokens_1xT, tokens_1xT, positions_1xM, weights_1xM, segments_1xT)
    logits_MxV = objective.apply({'params': params}, batch, method='logits')[0]
    log_p_MxV = jax.nn.log_softmax(logits_MxV.at[:, jnp.asarray(special_ids)].set(-jnp.inf))
    log_p_NxV = log_p_MxV.reshape(-1, repeats, log_p_MxV.shape[-1]).mean(1)
    return jax.lax.top_k(jax.nn.softmax(log_p_NxV), top)


def tokens_with_masks(tokenizer: AnyTokenizer, text: str) -> np.ndarray:
    """int32[n]: [CLS] text [SEP], every '[MASK]' in the text as one masked token.

    Raises:
      ConfigError: when the text holds no '[MASK]'.
    """
    v = tokenizer.vocabulary
    text = text.replace(tokenizer.id_to_piece(v.mask_id), MASK)
    if MASK not in text:
        raise ConfigError(f'the text {text!r} holds no {MASK}; write {MASK} where a word is to be filled in')
    return sequences.join([tokenizer.encode_masked(text, MASK)], v)


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError('this takes a list of texts; of one text, give [text]')
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f'texts must be strings, and number {number} is {type(text).__name__}')
    return texts
