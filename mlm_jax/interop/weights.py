"""Weights as safetensors: one file, or shards with an index. Read strictly, written in float32 or bfloat16.

Needs the package safetensors (extra `huggingface`). Nothing in these files is ever executed.
"""

import contextlib
import json
import pathlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from mlm_jax.files import git_lfs
from mlm_jax.interop import description

WEIGHTS_FILE, INDEX_FILE = 'model.safetensors', 'model.safetensors.index.json'
DTYPES: dict[str, Any] = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
SHARD_BYTES = 5_000_000_000  # a larger file is split: as transformers does, too

_FLOATS = ('float16', 'float32', 'float64', 'bfloat16')


def read(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Name → array, of any float type, of all weights in a directory.

    Raises:
      FileNotFoundError: when a file is missing.
      ImportError: without the extra `huggingface`.
      ValueError: for damaged files, and for weights that are not finite floats.
    """
    load_file = _safetensors().load_file
    arrays: dict[str, np.ndarray] = {}
    for file in _files(directory):
        with _opened(file):
            arrays |= load_file(file)
    for name, array in arrays.items():
        if array.dtype.name not in _FLOATS and not name.endswith('.position_ids'):
            raise ValueError(f'{directory} has {name} as {array.dtype}: weights are floats here')
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f'{directory} has {name} with NaN or infinite values: it is damaged, or has diverged')
    return arrays


def check(directory: pathlib.Path) -> None:
    """Raises the errors of `read` that show without reading the weights: of missing and of damaged files."""
    _safetensors()
    for file in _files(directory):
        with _opened(file):
            pass


def write(
    directory: pathlib.Path,
    arrays: Iterable[tuple[str, np.ndarray]],
    dtype: str = 'float32',
    shard_bytes: int = SHARD_BYTES,
    exact: Collection[str] = (),
) -> None:
    """Writes `model.safetensors`; if that would exceed `shard_bytes`, shards of at most that size, and their index.

    Args:
      directory: that exists.
      arrays: names and float arrays.
      dtype: of the weights in the file: a key of `DTYPES`.
      shard_bytes: the size of the largest file; an array that is larger has a file of its own.
      exact: the names of arrays that are written in float32, whatever the others are.

    Raises:
      ImportError: without the extra `huggingface`.
    """
    # safetensors writes the memory of an array as it lies: transposed views must be copied first.
    stored = {
        name: np.ascontiguousarray(array, np.float32 if name in exact else DTYPES[dtype]) for name, array in arrays
    }
    shards = _shards(stored, shard_bytes)
    if len(shards) == 1:
        _save(shards[0], directory / WEIGHTS_FILE)
        return
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f'model-{number:05}-of-{len(shards):05}.safetensors'
        _save(shard, directory / file)
        files |= dict.fromkeys(shard, file)
    size = sum(array.nbytes for shard in shards for array in shard.values())
    index = {'metadata': {'total_size': size}, 'weight_map': dict(sorted(files.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')


def _save(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes a file that the same people may read as others of this process; safetensors lets its owner alone."""
    path.touch()
    mode = path.stat().st_mode
    _safetensors().save_file(arrays, path, metadata={'format': 'pt'})
    path.chmod(mode)


def _shards(arrays: dict[str, np.ndarray], limit: int) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in arrays.items():
        if shards[-1] and size + array.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    return shards


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "checkpoints of Hugging Face need the package safetensors: pip install 'mlm_jax[huggingface]'"
        ) from None
    return safetensors.numpy


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The file of the weights, or its shards."""
    files = [directory / WEIGHTS_FILE]
    if not files[0].is_file() and (directory / INDEX_FILE).is_file():
        files = [directory / name for name in _names_in_index(directory / INDEX_FILE)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f'{directory} lacks {", ".join(missing)}. Where it has pytorch_model.bin instead, save_pretrained of a '
            'current transformers writes it as safetensors'
        )
    return files


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[None]:
    """A file of weights whose header fits its size; ValueError where it is damaged."""
    with file.open('rb') as stream:
        if git_lfs.is_pointer(stream.read(100)):
            raise ValueError(f'{file} is damaged: {git_lfs.REASON}')
    try:
        with _safetensors().safe_open(file, framework='np'):
            yield
    except Exception as error:  # SafetensorError, which cannot be named without the package
        raise ValueError(f'{file} is damaged: {error}') from error


def _names_in_index(path: pathlib.Path) -> list[str]:
    """The files that hold the weights, beside the index."""
    names = description.read_json(path).get('weight_map')
    if not isinstance(names, dict) or not names:
        raise ValueError(f'{path} is damaged: its "weight_map" says of no weight in which file it is')
    for name in names.values():
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise ValueError(f'{path} is damaged: {name!r} is no name of a file beside it')
    return sorted(set(names.values()))
