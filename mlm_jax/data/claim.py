"""A directory of prepared rows belongs to one set of settings and one corpus, and to one `prepare` at a time."""

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


def settings(config: ml_collections.ConfigDict) -> dict:
    """The keys that shape the rows, dotted, with their values."""
    keys = {'vocab_size': config.vocab_size, 'sequence_length': config.sequence_length}
    keys |= {f'data.{key}': value for key, value in config.data.items() if key != 'directory'}
    keys |= {f'tokenizer.{key}': value for key, value in config.tokenizer.items()}
    return keys


def claim(directory: pathlib.Path, working: pathlib.Path, intent: dict) -> None:
    """Marks a directory as being prepared with these settings, or refuses it."""
    mark = working / 'settings.json'
    if mark.exists():
        refuse_changes(directory, _read_intent(mark), intent)
        for leftover in (working, *working.glob('corpus/**/')):
            atomic.remove_leftovers(leftover)
        for leftover in working.glob('corpus/**/*.incomplete*'):  # of TFDS
            shutil.rmtree(leftover, ignore_errors=True)
        print(f'going on with what lies in {directory}')
        return
    strangers = sorted(f.name for f in directory.iterdir() if f.name != WORKING_DIRECTORY)
    if strangers:
        raise ConfigError(
            f'{directory} holds {", ".join(strangers[:3])}{" …" * (len(strangers) > 3)} and no prepared data: let '
            'data.directory name a new or empty directory'
        )
    working.mkdir(exist_ok=True)
    atomic.write_bytes(mark, sealed.dumps(intent))


def _read_intent(mark: pathlib.Path) -> dict:
    """Settings and sources of a preparation under way; ConfigError where nothing tells what they were."""
    try:
        stored = sealed.parse(mark.read_bytes())
        stored.pop(sealed.KEY, None)  # every difference is told in any case
        if not all(isinstance(stored[key], dict) for key in ('settings', 'sources')):
            raise ValueError('it holds other things')
        if not all(isinstance(files, dict) for files in stored['sources'].values()):
            raise ValueError('its sources are no files')
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f'{mark} is damaged ({error}), so nothing tells with which settings the preparation there has begun: '
            f'delete {mark.parents[1]}, and run this again'
        ) from None
    return stored


def refuse_changes(directory: pathlib.Path, old: dict, new: dict) -> None:
    """Raises ConfigError, with every difference, unless old and new settings and sources are equal."""
    changed, defaults = [], settings(config_lib.default_config())  # of keys that came later
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
    """Keeps a second `prepare` out of the directory; free again when this process ends, however it does."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f'another prepare is at work in {directory}; wait for it, or stop it') from None
    try:
        yield
    finally:
        os.close(descriptor)
