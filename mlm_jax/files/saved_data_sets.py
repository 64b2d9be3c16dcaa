"""Directories in which `save_to_disk` of the package datasets (Hugging Face) has stored data sets, as Arrow streams.

A data set lists its files in state.json. `map` and other methods of a data set that was loaded from there write their
results into the same directory, as cache-….arrow; these are other data than the data set.
"""

import glob
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mlm_jax.files import buckets
from mlm_jax.files.errors import ConfigError, unreadable

_STATE, _SPLITS = 'state.json', 'dataset_dict.json'
_CACHES = 'cache-*.arrow'


def files(directory: str) -> list[pathlib.Path]:
    """The files of the data set in a directory, which may lie in a bucket; none if no data set was saved there.

    Raises:
      ConfigError: if the directory holds several splits, or the data set is damaged.
    """
    place = buckets.path(directory).expanduser()
    splits = _content(place / _SPLITS).get('splits')
    if splits and isinstance(splits, list):
        raise ConfigError(
            f'{place} holds the splits {", ".join(map(str, splits))}: name those that are meant, such as '
            f'arrow:{place / str(splits[0])}'
        )
    found = [place / name for name in _listed(place / _STATE)]
    if missing := next((file for file in found if not file.is_file()), None):
        raise ConfigError(f'{missing} is missing, which {place / _STATE} lists: save the data set, or copy it, again')
    return found


def without_caches(pattern: str, found: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The files that a pattern has found; raises ConfigError if a glob has found caches of a saved data set."""
    if glob.has_magic(pattern):
        for directory in dict.fromkeys(file.parent for file in found if file.match(_CACHES)):
            if (directory / _STATE).is_file():
                cache = next(file for file in found if file.parent == directory and file.match(_CACHES))
                raise ConfigError(
                    f'{pattern} matches {cache.name}, a result of `map` that is no part of the data set in '
                    f'{directory}: write arrow:{directory}, which reads the files of the data set only. To read the '
                    'result, save it by save_to_disk, and name the directory'
                )
    return list(found)


def _listed(state: pathlib.Path) -> list[str]:
    """The names of the files of a data set, without directories; none if there is no such state."""
    try:
        return [pathlib.PurePath(entry['filename']).name for entry in _content(state).get('_data_files', [])]
    except (LookupError, TypeError):
        raise _damaged(state, 'it does not list files') from None


def _content(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    try:
        if not path.is_file():
            return {}
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else {'_data_files': None}
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None


def _damaged(path: pathlib.Path, reason: object) -> ConfigError:
    return ConfigError(f'{path} is damaged ({reason}): save the data set, or copy it, again')
