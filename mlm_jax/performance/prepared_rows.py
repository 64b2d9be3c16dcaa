"""The rows of a prepared directory, read in the way in which training reads them."""

import jax
import ml_collections

from mlm_jax.data import prepared_data
from mlm_jax.data.rows import Batches, Prefetcher
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
    config, data = prepared_data.resolve(config)
    run = build.make_run(config, data.vocabulary, data.rows_between_visits, data.tables(config.masking))
    return data.vocabulary, run, Batches(data.training_rows(), data.order(config), config.batch_size, sharding)
