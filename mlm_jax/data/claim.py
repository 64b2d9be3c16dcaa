"""Reserves a directory of prepared rows for one set of settings, for one corpus, and for one `prepare` at a time.

Several tasks of one `prepare`, on one machine or on many, share a directory. They need no locks: task 0 alone reserves
the directory and makes the tokenizer, while the others wait for its files; every other file is made by one task,
appears complete or not at all, and has the same content whoever makes it.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import sources
from mlm_jax.files import atomic, buckets, file_lock, sealed
from mlm_jax.files.errors import ConfigError

WORKING_DIRECTORY = '.prepare'
_LOCK_FILE = '.prepare.lock'  # beside that directory, which does not exist all the time
VERSION = 2  # of the way in which a corpus is divided into shards; `manifest.Manifest.preparation`
WAIT_SECONDS = 4 * 3600.0  # for task 0; training a tokenizer takes minutes, up to an hour for gigabytes of text
_POLL_SECONDS = 2.0
_MARK = 'settings.json'
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
    mark = working / _MARK
    if mark.exists():
        refuse_other_claim(working, intent)
        print(f'resuming   the unfinished preparation in {directory}')
        return
    others = sorted(f.name for f in directory.iterdir() if f.name not in (WORKING_DIRECTORY, _LOCK_FILE))
    if others:
        raise ConfigError(
            f'{directory} holds {", ".join(others[:3])}{" …" * (len(others) > 3)} but no prepared data: set '
            'data.directory to a new or empty directory'
        )
    working.mkdir(exist_ok=True)
    atomic.write_bytes(mark, sealed.dumps({**intent, 'preparation': VERSION}))


def known_settings(directory: pathlib.Path) -> dict:
    """The settings with which a directory was or is being prepared; {} if it is new."""
    if (directory / manifest_lib.FILE).exists():
        return manifest_lib.load(directory).settings
    mark = directory / WORKING_DIRECTORY / _MARK
    return _read_intent(mark)['settings'] if mark.exists() else {}


def is_claimed(working: pathlib.Path) -> bool:
    """Whether `claim` has marked the directory."""
    return (working / _MARK).exists()


def refuse_other_claim(working: pathlib.Path, intent: dict) -> None:
    """Raises ConfigError if a directory that is marked was marked with other settings, or by another version."""
    stored = _read_intent(working / _MARK)
    if stored.get('preparation') != VERSION:
        raise ConfigError(
            f'{working.parent} holds an unfinished preparation of another version of mlm_jax: delete it, and run this '
            'again'
        )
    refuse_changes(working.parent, stored, intent)


def wait_for(is_there: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Waits for something that another task makes; raises ConfigError after `seconds`."""
    if is_there():
        return
    print(f'waiting    for {what}, which task 0 makes', flush=True)
    end = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            raise ConfigError(
                f'task 0 has not made {what} within {seconds / 3600:g} hours: start it, and then this task again'
            )
        time.sleep(min(_POLL_SECONDS, seconds))


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
    """Raises ConfigError, which lists every difference, unless old and new settings and sizes of files are equal."""
    changed, defaults = [], settings(config_lib.default_config())  # for keys that newer versions have added
    for key in sorted(old['settings'].keys() | new['settings'].keys()):
        then, now = old['settings'].get(key, defaults.get(key)), new['settings'].get(key)
        if then != now:
            said = ', which is the default' if now == defaults.get(key) else ''  # probably not given
            changed.append(f'{key}: {then!r} there, {now!r} now{said}')
    refuse(directory, changed or sources.changes(*(files_of(intent) for intent in (old, new))))


def files_of(intent: dict) -> dict:
    """The files of all corpora of a preparation, with what is known of each."""
    return {file: state for files in intent['sources'].values() for file, state in files.items()}


def refuse(directory: pathlib.Path, changed: list[str]) -> None:
    """Raises ConfigError if the list of changes since the preparation of a directory is not empty."""
    if changed:
        raise ConfigError(
            f'{directory} was prepared with other settings:\n'
            + ''.join(f'    {change}\n' for change in changed)
            + f'Give data.directory another value, or delete {directory}'
        )


@contextlib.contextmanager
def locked(directory: pathlib.Path, shared: bool = False) -> Iterator[bool]:
    """Locks the directory against a second `prepare`; the lock is released when this process ends, even if killed.

    On file systems without locks, in buckets, and where nothing can be written, nothing is locked: two at once then do
    some work twice, and neither may remove temporary files, which may be those of the other.

    Args:
      directory: the directory.
      shared: whether others may hold the lock, too, that want to share it: the tasks of one `prepare`.

    Yields:
      Whether the directory is locked.

    Raises:
      ConfigError: if another process holds the lock.
    """
    if buckets.is_bucket(directory):
        yield False
        return
    with contextlib.ExitStack() as stack:
        try:
            is_locked = stack.enter_context(file_lock.held(directory / _LOCK_FILE, shared))
        except BlockingIOError:
            raise ConfigError(f'another prepare is running in {directory}; wait until it ends, or stop it') from None
        yield is_locked
