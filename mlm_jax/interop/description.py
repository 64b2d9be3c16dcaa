"""What `config.json` of a directory says, read key by key: each has a type, and nothing is taken for granted."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mlm_jax.files import git_lfs

CONFIG_FILE = 'config.json'
# What transformers has no key for, and does not read: facts about the encoder that its weights alone would not tell.
OWN_KEY = 'mlm_jax'

_LARGEST = 1 << 31


@dataclasses.dataclass(frozen=True)
class Description:
    """The object in a `config.json`.

    Attributes:
      path: of the file, for messages.
      stored: its keys.
    """

    path: pathlib.Path
    stored: Mapping[str, Any]

    @classmethod
    def of(cls, directory: pathlib.Path) -> 'Description':
        """Reads the file of a directory; FileNotFoundError without it, ValueError where it is damaged."""
        path = directory / CONFIG_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f'{directory} has no {CONFIG_FILE}: it is no checkpoint as `save_pretrained` of transformers leaves it'
            )
        return cls(path, read_json(path))

    def has(self, key: str) -> bool:
        """Whether the key is there and is not null."""
        return self.stored.get(key) is not None

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive integer; ValueError for anything else, and without the key where there is no default."""
        return int(self._checked(key, default, (int,), 'a positive integer', 1))

    def number(self, key: str, default: float | None = None) -> float:
        """A number of 0 or more; ValueError for anything else, and without the key where there is no default."""
        return self._checked(key, default, (int, float), 'a number of 0 or more', 0)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; ValueError for anything else."""
        value = self.stored.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong_type(key, value, 'true or false')
        return value

    def within(self, key: str) -> 'Description':
        """The object under a key, empty where there is none; ValueError where it is no object."""
        value = self.stored.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong_type(key, value, 'an object')
        return Description(self.path, value or {})

    def own(self, key: str, default: Any, choices: tuple | None = None) -> Any:
        """What an export from here has noted of the encoder, or the default.

        Raises:
          ValueError: for another type than the default's, and for none of the `choices`.
        """
        value = self.within(OWN_KEY).stored.get(key, default)
        if type(value) is not type(default) or (choices and value not in choices):
            expected = ' or '.join(map(repr, choices)) if choices else f'like {default!r}'
            raise self.wrong_type(f'{OWN_KEY}.{key}', value, expected)
        return value

    def check_fixed(self, fixed: Mapping[str, Any]) -> None:
        """Raises ValueError where a key has another value than the only one that has a place; missing means that."""
        for key, value in fixed.items():
            if (actual := self.stored.get(key, value)) != value:
                raise ValueError(f'{self.path} has {key}={actual!r}: only {value!r} has a place here')

    def pad_id(self, default: int, places: str = '') -> int:
        """The id of the padding.

        Args:
          default: where the key is missing.
          places: what counts positions from it, so that null is none; '' for a model that needs no padding.
        """
        pad_id = self.stored.get('pad_token_id', default)
        if pad_id is None and not places:
            return default
        if isinstance(pad_id, bool) or not isinstance(pad_id, int) or pad_id < 0:
            raise ValueError(
                f'{self.path} has pad_token_id={json.dumps(pad_id)}: it should be the id of the padding'
                + f', from which positions count; in the {places} that was published, {default}' * bool(places)
            )
        return pad_id

    def wrong_type(self, key: str, value: object, expected: str) -> ValueError:
        """The error for a value of another type."""
        return ValueError(f'{self.path} holds a value of another type: {key}={value!r} should be {expected}')

    def _checked(self, key: str, default: Any, kinds: Any, sort: str, low: int) -> Any:
        if key not in self.stored and default is None:
            raise ValueError(f'{self.path} lacks {key!r}')
        value = self.stored.get(key, default)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self.wrong_type(key, value, sort)
        if not low <= value <= _LARGEST:
            raise ValueError(f'{self.path} has {key}={value!r}, which should be {sort}')
        return value


def read_json(path: pathlib.Path) -> dict:
    """A JSON object; ValueError for anything else."""
    content = path.read_bytes()
    if git_lfs.is_pointer(content):
        raise ValueError(f'{path} is damaged: {git_lfs.REASON}')
    try:
        stored = json.loads(content.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged: {error}') from None
    if not isinstance(stored, dict):
        raise ValueError(f'{path} holds a value of another type: a {type(stored).__name__}, not an object with keys')
    return stored
