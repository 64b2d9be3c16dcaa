"""Reserves a directory of prepared rows for one set of settings, for one corpus, and for one `prepare` at a time."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.data import corpora
from mlm_jax.files import atomic, sealed
from mlm_jax.files.errors import ConfigError

WORKING_DIRECTORY = '.prepare'
# Keys of `data` that say where rows lie and how training reads them, not what they are.
_ABOUT_READING = ('directory', 'mixture_temperature', 'block_kib', 'window_blocks')


def settings(config: ml_collections.ConfigDict) -> dict:
    """The configuration keys that determine the rows, with dots in their names, and their values."""
    keys = {'vocab_size': config.vocab_size, 'sequence_length': config.sequence_length}
    keys |= {f'data.{key}': value for key, value in config.data.items() if key not in _ABOUT_READING}
    keys |= {f'tokenizer.{key}': value for key, value in config.tokenizer.items()}
    return keys


def claim(directory: pathlib.Path, working: pathlib.Path, intent: dict) -> None:
    """Marks a directory as being prepared with these settings; raises ConfigError if it is used for other data."""
    mark = working / 'settings.json'
    if mark.exists():
        refuse_changes(directory, _read_intent(mark), intent)
        for leftover in (working, *working.glob('corpus/**/')):
            atomic.remove_leftovers(leftover)
        for leftover in working.glob('corpus/**/*.incomplete*'):  # left by TFDS
            shutil.rmtree(leftover, ignore_errors=True)
        print(f'resuming   the unfinished preparation in {directory}')
        return
    others = sorted(f.name for f in directory.iterdir() if f.name != WORKING_DIRECTORY)
    if others:
        raise ConfigError(
            f'{directory} holds {", ".join(others[:3])}{" …" * (len(others) > 3)} but no prepared data: set '
            'data.directory to a new or empty directory'
        )
    working.mkdir(exist_ok=True)
    atomic.write_bytes(mark, sealed.dumps(intent))


def _read_intent(mark: pathlib.Path) -> dict:
    """The settings and sources of an unfinished preparation; raises ConfigError if they cannot be read."""
    try:
        stored = sealed.parse(mark.read_bytes())
        stored.pop(sealed.KEY, None)  # not verified: any damage shows up as a difference
        if not all(isinstance(stored[key], dict) for key in ('settings', 'sources')):
            raise ValueError('it lacks the settings or the sources')
        if not all(isinstance(files, dict) for files in stored['sources'].values()):
            raise ValueError('its sources do not list files')
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f'{mark} is damaged ({error}), so the settings of the unfinished preparation there are unknown: delete '
            f'{mark.parents[1]}, and run this again'
        ) from None
    return stored


def refuse_changes(directory: pathlib.Path, old: dict, new: dict) -> None:
    """Raises ConfigError, which lists every difference, unless the old and new settings and sources are equal."""
    changed, defaults = [], settings(config_lib.default_config())  # for keys that newer versions have added
    for key in sorted(old['settings'].keys() | new['settings'].keys()):
        then, now = old['settings'].get(key, defaults.get(key)), new['settings'].get(key)
        if then != now:
            changed.append(f'    {key}: {then!r} there, {now!r} now')
    if not changed:
        then, now = ({f: s for files in x['sources'].values() for f, s in files.items()} for x in (old, new))
        changed = [f'    {change}' for change in corpora.changes(then, now)]
    if changed:
        raise ConfigError(
            f'{directory} was prepared with other settings:\n' + '\n'.join(changed) + '\n'
            f'Give data.directory another value, or delete {directory}'
        )


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Locks the directory against a second `prepare`; the lock is released when this process ends, even if killed."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f'another prepare is running in {directory}; wait until it ends, or stop it') from None
    try:
        yield
    finally:
        os.close(descriptor)
