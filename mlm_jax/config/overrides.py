"""Configuration files by name, and what is changed of them on the command line.

The files in `configs/` choose values, and a user changes them in one of two ways, which both refuse unknown keys:

    --config=configs/mlm.py:mini,batch_size=64,model.dropout=0.0     arguments of the configuration file
    --set=optimizer.learning_rate=1e-3                               settings, applied last

A value with a comma is given by `--set`. One argument of the file is no key: `recipe` (see `keys.apply_recipe`).
"""

import ast
import importlib.machinery
import math
import pathlib
import traceback
import types
from collections.abc import Collection, Mapping, Sequence

import ml_collections

from mlm_jax.config.access import leaves, parent_of, unknown
from mlm_jax.config.defaults import SIZES
from mlm_jax.config.durations import DURATION_UNITS, is_duration
from mlm_jax.files import paths
from mlm_jax.files.errors import ConfigError

_ARGUMENTS_OF_FILES = ('recipe',)  # which are no keys


def shipped() -> dict[str, pathlib.Path]:
    """The configuration files that come with the package, by name: those of `configs/` in the repository."""
    package = pathlib.Path(__file__).parents[1]
    installed = package / 'configs'
    directory = installed if installed.is_dir() else package.parent / 'configs'
    return {path.stem: path for path in sorted(directory.glob('*.py')) if path.stem != '__init__'}


def with_path(name: str) -> str:
    """'FILE.py:ARGUMENT' for what names a configuration: that itself, or 'mlm:ARGUMENT' for a file that is shipped.

    Raises:
      ConfigError: when there is no such file.
    """
    paths.check_configuration_name(name)
    path, colon, argument = name.partition(':')
    if path in shipped():
        path = str(shipped()[path])
    if not pathlib.Path(path).is_file():
        raise ConfigError(f'there is no configuration file {path}. Those that are shipped: {", ".join(shipped())}')
    return f'{path}{colon}{argument}'


def load(name: str, settings: Mapping[str, str] | None = None) -> ml_collections.ConfigDict:
    """The configuration that `--config=NAME` names: FILE.py or FILE.py:ARGUMENT; without `.py`, of a shipped file.

    Args:
      name: of the configuration.
      settings: dotted key → value as written, set last.

    Raises:
      ConfigError: when there is no such file, it does not load, its argument is wrong, or a setting is.
    """
    path, _, argument = with_path(name).partition(':')
    loader = importlib.machinery.SourceFileLoader(pathlib.Path(path).stem, path)
    module = types.ModuleType(loader.name)
    module.__file__ = path
    try:
        loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except (ConfigError, OSError, ImportError):
        raise
    except Exception as error:  # the file is the user's, and can raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = lines[-1] if lines else getattr(error, 'lineno', 0)
        raise ConfigError(f'{path}, line {line}: {type(error).__name__}: {error}') from error
    apply_overrides(config, settings or {})
    return config


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Dotted key → value as written, from the 'KEY=VALUE' of `--set`; of a key that is given twice, the last value.

    Raises:
      ConfigError: for a text without '=', and for arguments of a configuration file that are no keys.
    """
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition('='))
        if not equals:
            raise ConfigError(f'--set={text}: give KEY=VALUE')
        if key in _ARGUMENTS_OF_FILES:
            raise ConfigError(
                f'--set={text}: {key} is an argument of the configuration file, which fits the rest to it: '
                f'--config=FILE.py:SIZE,{key}={value}'
            )
        settings.pop(key, None)  # the last one also comes last: of two units of a duration it counts
        settings[key] = value
    return settings


def parse_argument(
    argument: str, names: Collection[str], default: str, nouns: str = 'sizes'
) -> tuple[str, dict[str, str]]:
    """Splits the argument of a configuration file, such as 'base,batch_size=64', into a name and overrides.

    Args:
      argument: what follows the colon.
      names: what the file offers.
      default: the name that is meant where the argument has none.
      nouns: what these are the names of.

    Returns:
      The name, and a dict of dotted key → value as written.

    Raises:
      ConfigError: for an unknown name or a part without '='.
    """
    name, overrides = default, {}
    for place, part in enumerate(filter(None, argument.split(','))):
        key, equals, value = part.partition('=')
        if equals:
            overrides[key.strip()] = value.strip()
        elif place == 0 and part in names:
            name = part
        else:
            choices = f'neither one of the {nouns} ({", ".join(names)}; first if given) nor' if names else 'not'
            cure = f' (the size is given as size={part})' if part in SIZES and nouns != 'sizes' else ''
            raise ConfigError(
                f'{part!r} in the configuration argument {argument!r} is {choices} key=value{cure}. Commas '
                'separate these; a value that holds one is given by itself, as in --set=data.corpus=text:b,c.txt'
            )
    return name, overrides


def apply_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets dotted keys of `config` from text, with the types that the keys have.

    A duration replaces the one in another unit: `total_epochs=3` unsets `total_steps`.

    Raises:
      ConfigError: for an unknown key (naming close ones) or a value of the wrong type.
    """
    known = {key for key, _ in leaves(config)}
    for key, text in overrides.items():
        if key not in known:
            raise ConfigError(unknown(key, known))
        node, name = parent_of(config, key)
        old = node.get_type(name)
        prefix = name.rpartition('_')[0]
        if is_duration(key):
            for other in DURATION_UNITS:
                with node.ignore_type():
                    node[f'{prefix}_{other}'] = None
        try:
            node[name] = _parse_value(text, old)
        except (TypeError, ValueError, SyntaxError, KeyError, OverflowError, RecursionError, MemoryError):
            raise ConfigError(f'{key}={text}: expected a value of type {old.__name__}') from None


def _parse_value(text: str, kind: type) -> bool | int | float | str | None:
    if text == 'None' or (text == 'auto' and kind is not str):
        return None
    if kind is str:
        return text
    if kind is bool:
        return {'true': True, 'false': False}[text.lower()]  # KeyError: neither
    value = ast.literal_eval(text)
    if kind is int and isinstance(value, float) and value == math.floor(value):
        value = int(value)  # 1e6 steps
    return kind(value) if kind is float else value
