"""The rows of a prepared directory, read in the way in which training reads them."""

import jax
import ml_collections

from mlm_jax.data import masking_tables, verification
from mlm_jax.data.rows import Batches, Prefetcher
from mlm_jax.data.shards import Shards
from mlm_jax.masking.vocabulary import Vocabulary
from mlm_jax.training import build

__all__ = ['Prefetcher', 'from_directory']


def from_directory(
    config: ml_collections.ConfigDict, sharding: jax.sharding.NamedSharding
) -> tuple[Vocabulary, build.Run, Batches]:
    """The vocabulary, the functions of a run, and its batches, for the rows in `config.data.directory`.

    Args:
      config: with the directory of the rows under `data.directory`.
      sharding: of the batches.

    Raises:
      ConfigError: when the configuration does not fit the rows.
    """
    config, manifest = verification.resolve(config)
    shards = Shards(config.data.directory, 'train')
    tables = masking_tables.load(config.masking, config.data.directory, manifest)
    run = build.make_run(config, manifest.vocabulary, len(shards), tables)
    return manifest.vocabulary, run, Batches(shards, config.seed, config.batch_size, sharding)
