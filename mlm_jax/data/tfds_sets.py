"""Data sets of TensorFlow Datasets (TFDS) by name, stored as ArrayRecord files and read without TensorFlow.

TFDS is imported when it is needed, because its import takes longer than that of all of this package.
"""

import dataclasses
import functools
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlm_jax.files.errors import ConfigError, TransientError

_TFDS_HOST = 'https://storage.googleapis.com'
_BATCH_BYTES = 4 << 20  # bytes of text that are read at a time, because each read has a fixed cost


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one split.

    Attributes:
      directory: the directory of the prepared data set.
      split: the name of the split.
      count: the number of examples.
      num_bytes: their approximate size.
    """

    directory: str
    split: str
    count: int
    num_bytes: int

    def read(self, text_key: str, start: int, stop: int) -> Iterator[bytes]:
        """The texts of the examples start … stop − 1, as they are stored in the feature `text_key`."""
        from tensorflow_datasets.proto import tf_example_pb2

        source = _open_source(self.directory, self.split)
        step = max(1, _BATCH_BYTES * self.count // max(1, self.num_bytes))
        for first in range(start, stop, step):
            for record in source.__getitems__(range(first, min(first + step, stop))):
                # Decoding by TFDS takes several times as long.
                example = tf_example_pb2.Example.FromString(record)
                yield example.features.feature[text_key].bytes_list.value[0]


def open_splits(name: str, text_key: str) -> dict[str, Examples]:
    """The splits of a data set by their names, `train` among them; downloads the data set if necessary.

    Raises:
      ConfigError: if there is no such data set, it has no train split, or it has no texts under `text_key`.
    """
    builder = prepared_builder(name)
    features, splits = builder.info.features, builder.info.splits
    if text_key not in features or features[text_key].np_dtype != np.object_ or features[text_key].shape != ():
        raise ConfigError(
            f'the data set {name} has no text feature {text_key!r}; its features are {", ".join(features)}. Set '
            'data.text_key'
        )
    if 'train' not in splits:
        raise ConfigError(f'the data set {name} has no train split; its splits are {", ".join(splits)}')
    return {
        split: Examples(str(builder.data_path), split, info.num_examples, info.num_bytes)
        for split, info in splits.items()
    }


@functools.lru_cache(maxsize=8)
def _open_source(directory: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return tfds.builder_from_directory(directory).as_data_source(split, deserialize_method=raw)


def prepared_builder(name: str) -> Any:
    """The builder of a data set that is on disk as ArrayRecord; downloads the data set if necessary."""
    import tensorflow_datasets as tfds

    try:
        builder = _builder(name)
    except tfds.core.DatasetNotFoundError:
        raise ConfigError(
            f'TFDS can neither find {name} in {tfds.core.constants.DATA_DIR} nor build it. Check the name '
            '(tensorflow.org/datasets/catalog). The builders of some data sets (wikipedia, wiki40b, c4, glue) need '
            f'TensorFlow: run `tfds build {name} --file_format=array_record` on a machine that has TensorFlow, copy '
            'the result here, and set the environment variable TFDS_DATA_DIR to its parent directory'
        ) from None
    except (ValueError, RuntimeError, TypeError) as error:  # an unknown config or version
        raise ConfigError(f'TFDS rejects {name}: {error}') from error
    if builder.data_path.exists():
        formats = builder.info.available_file_formats()
        if tfds.core.FileFormat.ARRAY_RECORD not in formats:
            listed = ', '.join(f.value for f in formats)
            raise ConfigError(
                f'the data set {name} in {builder.data_path} is stored as {listed}, which only TensorFlow can read. '
                f'On a machine that has TensorFlow, run\n'
                f'    tfds convert_format --dataset_version_dir={builder.data_path} --out_file_format=array_record\n'
                'or delete that directory, so that the data set is prepared again'
            )
        return builder
    _check_reachable(name, builder.data_path)
    builder.download_and_prepare(file_format='array_record')
    return builder


def _builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder(name)


def _check_reachable(name: str, directory: Any) -> None:
    """Fails within seconds if the download would fail only after minutes."""
    try:
        urllib.request.urlopen(_TFDS_HOST, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # the host answered
    except OSError as error:
        raise TransientError(
            f'the data set {name} is not in {directory}, and {_TFDS_HOST} cannot be reached to download it '
            f'({error}). Run this on a machine with network access, or copy the directory here from a machine that '
            'has it (stored as array_record), or set the environment variable TFDS_DATA_DIR to the directory that '
            'holds it'
        ) from None
