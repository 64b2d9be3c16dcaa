"""The prepared data of a run: one directory, or a mixture of several, as `data.directory` names them."""

import dataclasses
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from mlm_jax import config as config_lib
from mlm_jax.config import mixture
from mlm_jax.data import cycles, masking_tables, mixtures, verification
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data.joined_rows import InTurn, Joined
from mlm_jax.data.manifest import Manifest
from mlm_jax.data.orders import BlockPermutation, Order, Permutation
from mlm_jax.data.rows import RowSource, SpanRows
from mlm_jax.data.shards import Shards
from mlm_jax.files import atomic, buckets
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.tables import Tables
from mlm_jax.masking.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Source:
    """One directory of prepared rows.

    Attributes:
      name: a short name, unique among the sources of the data.
      directory: the path.
      manifest: its manifest.
      share: how often the source comes in a cycle of the mixture; 1 for a single directory.
    """

    name: str
    directory: pathlib.Path
    manifest: Manifest
    share: int = 1


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of one split of all sources.

    Attributes:
      rows: the number of rows.
      unigram_entropy_nats: as `manifest.Split` defines it; of a mixture, the mean by shares, which is the loss of a
        model that knows the frequencies of the tokens in each source.
    """

    rows: int
    unigram_entropy_nats: float


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """The data of a run.

    All sources have the same tokenizer, row length, packing and vocabulary: those of `manifest`, that of the first.
    """

    sources: tuple[Source, ...]

    @property
    def is_mixture(self) -> bool:
        """Whether there are several sources."""
        return len(self.sources) > 1

    @property
    def manifest(self) -> Manifest:
        """The manifest of the first source, for what all sources have in common."""
        return self.sources[0].manifest

    @property
    def vocabulary(self) -> Vocabulary:
        """The special ids and the number of ids."""
        return self.manifest.vocabulary

    @property
    def sequence_length(self) -> int:
        """T, the number of tokens in a row."""
        return self.manifest.sequence_length

    @property
    def packing(self) -> str:
        """As in `data.packing`."""
        return self.manifest.packing

    @property
    def tokenizer(self) -> pathlib.Path:
        """The file of the tokenizer."""
        return self.sources[0].directory / self.manifest.tokenizer

    @property
    def prepare_command(self) -> str:
        """How to call `prepare` for the corpus of the first source."""
        return self.manifest.prepare_command

    @property
    def weights(self) -> dict[str, float]:
        """Name of a source → its share of the training rows, which add up to 1."""
        total = sum(source.share for source in self.sources)
        return {source.name: source.share / total for source in self.sources}

    @property
    def rows_between_visits(self) -> int:
        """The number of rows after which a row comes again, from which visits of rows are counted.

        In a mixture there is no such number. Every row then counts as another visit, which gives each of them masks of
        its own; masks that follow the visits of a row are refused for mixtures (`config.checks`).
        """
        return 1 if self.is_mixture else self.split('train').rows

    def split(self, name: str) -> Split:
        """The split 'train' or 'validation' of all sources; ConfigError if one has none."""
        splits = [source.manifest.split(name) for source in self.sources]
        entropies = zip(self.weights.values(), splits, strict=True)
        return Split(
            sum(split.rows for split in splits),
            sum(weight * split.unigram_entropy_nats for weight, split in entropies),
        )

    def shards(self, split: str, verify: bool = False) -> dict[str, Shards]:
        """Name of a source → its rows; the arguments and errors are those of `Shards`."""
        return {source.name: Shards(source.directory, split, verify, source.manifest) for source in self.sources}

    def training_rows(self) -> SpanRows:
        """The training rows, numbered as `order` numbers them."""
        found = list(self.shards('train').values())
        return Joined(found) if self.is_mixture else found[0]

    def held_out_rows(self) -> RowSource:
        """The held-out rows, compared with their checksums as they are read; those of a mixture in turn by its shares.

        Raises:
          ConfigError: if there are none.
        """
        for source in self.sources:
            if not source.manifest.split('validation').rows:
                raise ConfigError(
                    f'{source.directory} has no held-out rows: raise data.validation_percent, or name a '
                    'data.validation_corpus'
                )
        found = list(self.shards('validation', verify=True).values())
        return InTurn(found, [source.share for source in self.sources]) if self.is_mixture else found[0]

    def reading(self, window_blocks: int) -> mixtures.Reading:
        """The reading of a run that begins with these data.

        Args:
          window_blocks: as `data.window_blocks`. Sources have windows by their shares, which take as much memory, and
            mix as well, as the window of a single directory.
        """
        readers = [
            mixtures.Reader(
                source.name, source.manifest.fingerprint, source.manifest.split('train').rows, source.share, number,
                window=max(1, round(weight * window_blocks)),
                held_out=source.manifest.fingerprint_of('validation'),
            )
            for number, (source, weight) in enumerate(zip(self.sources, self.weights.values(), strict=True))
        ]  # fmt: skip
        return mixtures.Reading(0, tuple(readers))

    def order(self, config: ml_collections.ConfigDict, reading: mixtures.Reading | None = None) -> mixtures.Mixture:
        """The order of the training rows.

        Args:
          config: the configuration of the run, with its seed, and the keys of `data` about reading.
          reading: where a resumed run goes on; None: a new run.
        """
        reading = reading or self.reading(config.data.window_blocks)
        block_rows = self.block_rows(config.data.block_kib)
        orders: list[Order] = []
        for reader in reading.present:
            seed = reader.seed(config.seed)
            if block_rows:
                orders.append(BlockPermutation(reader.rows, seed, block_rows, reader.window))
            else:
                orders.append(Permutation(reader.rows, seed))
        return mixtures.Mixture(reading, orders)

    def block_rows(self, kib: int) -> int:
        """The least number of rows that take `kib` KiB."""
        return -(-kib * 1024 // (self.sequence_length * np.dtype(self.manifest.dtype).itemsize))

    def are_of(self, tokenizer: pathlib.Path) -> bool:
        """Whether the rows hold the ids of the tokenizer in a file; True where there is no such file to compare."""
        mine = self.manifest.tokenizer_sha256 or atomic.sha256(self.tokenizer)
        return not tokenizer.exists() or atomic.sha256(tokenizer) == mine

    def have_fingerprints(self, readers: Sequence[mixtures.Reader]) -> bool:
        """Whether these are the training rows, in these shares, of the sources of a run, as far as it knows theirs."""
        known = [(reader.fingerprint, reader.share) for reader in readers]
        own = [(source.manifest.fingerprint, source.share) for source in self.sources]
        return len(known) == len(own) and all(
            fingerprint in ('', mine) and share == my_share
            for (fingerprint, share), (mine, my_share) in zip(known, own, strict=True)
        )

    def tables(self, masking: ml_collections.ConfigDict) -> Tables:
        """What the masking, `masking` of a configuration, needs of tokenizer and corpus; errors as `masking_tables`."""
        found = [(source.directory, source.manifest) for source in self.sources]
        return masking_tables.load(masking, found, list(self.weights.values()))

    def checksums(self) -> list[tuple[pathlib.Path, manifest_lib.Shard]]:
        """The directory and the entry of every file of rows."""
        return [
            (source.directory, shard)
            for source in self.sources
            for split in source.manifest.splits.values()
            for shard in split.shards
        ]

    def identity(self) -> str:
        """The rows in words and by fingerprints, wherever the directories lie; runs of equal ones have read the same.

        The shares of a mixture are part of it.
        """
        sources = [
            (f'{source.share} × ' if self.is_mixture else '')
            + ' and '.join(
                f'{source.manifest.split(split).rows:,} {words} ({source.manifest.fingerprint_of(split)[:10]})'
                for split, words in (('train', 'rows'), ('validation', 'held out'))
            )
            for source in self.sources
        ]
        return f'{"; ".join(sources)}, of {self.sequence_length} tokens among {self.vocabulary.size:,} ids'

    def describe(self) -> str:
        """The sources of a mixture with their sizes and shares; '' for a single directory."""
        if not self.is_mixture:
            return ''
        parts = [
            f'{s.name} {100 * weight:.4g} % from {s.manifest.split("train").rows:,}'
            for s, weight in zip(self.sources, self.weights.values(), strict=True)
        ]
        return f'mixture: {", ".join(parts)} rows; an epoch is as many rows as all have together'


def load(data: ml_collections.ConfigDict) -> PreparedData:
    """The data that `data.directory` of a configuration names; `data` is its part with that name.

    Raises:
      ConfigError: if a directory holds no prepared data, or the directories of a mixture do not go together.
    """
    named = mixture.parse(data.directory)
    found = [
        Source(source.name, buckets.path(source.directory).expanduser(), manifest_lib.load(source.directory))
        for source in named
    ]
    if len(found) == 1:
        return PreparedData(tuple(found))
    _check_alike(found)
    weights = [source.weight for source in named if source.weight is not None]
    if not weights:
        rows = [source.manifest.split('train').rows for source in found]
        weights = cycles.by_size(rows, data.mixture_temperature)
    shares = cycles.shares(weights, [source.name for source in found])
    return PreparedData(
        tuple(dataclasses.replace(source, share=share) for source, share in zip(found, shares, strict=True))
    )


def resolve(config: ml_collections.ConfigDict) -> tuple[ml_collections.ConfigDict, PreparedData]:
    """The configuration that runs on its prepared data, and these data.

    Raises:
      ConfigError: if the configuration is wrong, the data are missing, or the two or the tokenizer do not match.
    """
    config_lib.check(config)  # before the data, which a wrong configuration may not name
    data = load(config.data)
    return fitted(config, data), data


def fitted(config: ml_collections.ConfigDict, data: PreparedData) -> ml_collections.ConfigDict:
    """The configuration that runs on `data`.

    Raises:
      ConfigError: if the configuration is wrong, or it, the data and their tokenizer do not match.
    """
    for source in data.sources:
        if buckets.is_bucket(source.directory) and not config.data.block_kib:
            raise ConfigError(
                f'{source.directory} lies in a bucket, where each single row would be a request: set '
                'data.block_kib=256, with which rows are read in blocks of 256 KiB'
            )
    resolved = config_lib.resolve(config, data)
    for source in data.sources:
        verification.check_tokenizer(source.directory, source.manifest)
    return resolved


def _check_alike(sources: Sequence[Source]) -> None:
    """Raises ConfigError if rows of these sources cannot be in one batch, or are not of one tokenizer."""
    first, *others = sources
    ours, theirs = _common(first.manifest), {other.directory: _common(other.manifest) for other in others}
    different = [
        f'  {what}: {ours[what]} in {first.directory}, {facts[what]} in {directory}'
        for directory, facts in theirs.items()
        for what in ours
        if ours[what] != facts[what]
    ]
    if different:
        raise ConfigError(
            'the directories of the mixture were prepared with different settings:\n' + '\n'.join(different) + '\n'
            'Prepare the others again, in new directories, with the same sequence_length, vocab_size and data.packing, '
            f'and with tokenizer.model={first.directory / first.manifest.tokenizer}'
        )


def _common(manifest: Manifest) -> dict[str, str]:
    """What all sources of a mixture must have in common, in words."""
    return {
        'SHA-256 of the tokenizer': manifest.tokenizer_sha256[:16],
        'sequence_length': str(manifest.sequence_length),
        'vocab_size': str(manifest.vocabulary.size),
        'special ids': ', '.join(map(str, manifest.vocabulary.special_ids)),
        'data.packing': manifest.packing,
        'type of the ids': manifest.dtype,
    }
