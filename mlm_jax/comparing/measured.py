"""With what an experiment was measured: commit, date, hardware and versions, of runs or of this process."""

import datetime
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mlm_jax.files.errors import ConfigError
from mlm_jax.training.workdir import environment, read_json

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax')  # of environment.json, those that decide what is computed


def of_runs(workdirs: Sequence[pathlib.Path]) -> dict[str, Any]:
    """The fields `commit`, `date`, `hardware` and `versions` of an experiment, of runs; several where they differ."""
    found = [stored for workdir in workdirs if (stored := _stored(workdir))]
    ended = max((workdir / 'metrics.jsonl').stat().st_mtime for workdir in workdirs)
    return _fields(found, datetime.date.fromtimestamp(ended), _LIBRARIES)


def of_this_process(libraries: Sequence[str] = ()) -> dict[str, Any]:
    """The same of what this process measures today; to be called before it writes a file of the repository.

    Args:
      libraries: whose versions matter besides those of JAX.
    """
    return _fields([environment(libraries)], datetime.date.today(), (*_LIBRARIES, *libraries))


def _fields(found: Sequence[Mapping[str, Any]], date: datetime.date, libraries: Sequence[str]) -> dict[str, Any]:
    return {
        'commit': ' and '.join(dict.fromkeys(_short(each['commit']) for each in found if each['commit'])) or None,
        'date': date.isoformat(),
        'hardware': ' and '.join(dict.fromkeys(_hardware(each['devices']) for each in found)) or None,
        'versions': {
            name: version for each in found for name, version in each['versions'].items() if name in libraries
        },
    }


def _stored(workdir: pathlib.Path) -> dict | None:
    """What the run was trained with; None, said so, where that file is damaged: results do not depend on it."""
    try:
        return read_json(workdir / 'environment.json', 'The report leaves out the commit and the hardware of this run')
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return None


def _short(commit: str) -> str:
    identifier, *dirty = commit.split('-')
    return '-'.join([identifier[:10], *dirty])


def _hardware(devices: Mapping[str, Any]) -> str:
    processor = f' ({devices["cores"]} cores of {devices["processor"]})' if 'processor' in devices else ''
    return f'{devices["count"]} × {devices["kind"]}{processor}'
