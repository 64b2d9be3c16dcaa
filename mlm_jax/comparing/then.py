"""The grammar of `compare --then`: by what the pretrained models of a comparison are judged afterwards.

    finetune:glue/sst2,glue/rte,epochs=3,seeds=5,blimp:data/blimp,percent=10,effective_rank

It is a list of words between commas. The name of a measure, with an argument behind a colon where it takes one, begins
a measure; KEY=VALUE is an option of the measure before it, and VALUE/VALUE are several values of one; any other word is
a further task of the measure before it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from mlm_jax.files import paths
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks import suites

FINETUNE, BLIMP, RANK, ENTROPY, VARIANCE = 'finetune', 'blimp', 'effective_rank', 'entropy', 'gradient_variance'
SEEDS = 'seeds'  # of fine-tuning
# Measure → its argument, of those that take one: fine-tuning takes tasks, and others take a directory.
ARGUMENTS = {FINETUNE: 'TASK,TASK,…', BLIMP: 'DIRECTORY'}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a measure.

    Attributes:
      default: its values; their type is that of all values.
      holds: whether a value is possible.
      range: which are, in words.
      takes_several: whether several values may be given.
    """

    default: tuple
    holds: Callable[[float], bool]
    range: str
    takes_several: bool = False

    @property
    def shown(self) -> str:
        """The default as it could be given."""
        return '/'.join(str(value).lower().removesuffix('.0') for value in self.default)


def _at_least(default: int, least: int) -> Option:
    return Option((default,), lambda value: value >= least, f'a whole number, {least} or more')


# Measure → its options. Those of fine-tuning are the keys of a recipe, which `finetuning.jobs` parses, and its seeds.
OPTIONS: dict[str, dict[str, Option]] = {
    FINETUNE: {SEEDS: _at_least(3, 1)},
    BLIMP: {
        'percent': Option((100.0,), lambda value: 0 < value <= 100, 'above 0 and at most 100'),
        'within_word': Option((False,), lambda value: True, 'true or false'),
    },
    RANK: {
        'rows': _at_least(4096, 1),
        'threshold': Option((0.9,), lambda value: 0 < value <= 1, 'above 0 and at most 1'),
    },
    ENTROPY: {
        'rows': _at_least(4096, 1),
        'ratios': Option((0.15, 0.3, 0.5), lambda value: 0 < value < 1, 'above 0 and below 1', takes_several=True),
    },
    VARIANCE: {'texts': _at_least(64, 3), 'segments': _at_least(7, 2), 'draws': _at_least(8, 3)},
}


def help_text() -> str:
    """What `--then` takes."""
    return (
        f'What each pretrained model is judged by afterwards: one measure or several, between commas. {_measures()}. '
        'KEY=VALUE behind a measure is an option of it, and VALUE/VALUE gives it both values, as in '
        'finetune:glue/sst2,epochs=3,learning_rate=1e-4/3e-4,entropy'
    )


def _measures() -> str:
    """A sentence with all measures and their options."""
    described = []
    for kind, options in OPTIONS.items():
        keys = [f'{key}={option.shown}' for key, option in options.items()]
        keys += ['the keys of its recipe'] if kind == FINETUNE else []
        name = ':'.join([kind, *([ARGUMENTS[kind]] if kind in ARGUMENTS else [])])
        described.append(f'{name} ({", ".join(keys)})' if keys else name)
    return f'The measures, with the defaults of their options, are {"; ".join(described)}'


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure, as it was asked for.

    Attributes:
      kind: a key of `OPTIONS`.
      arguments: names of tasks (SUITE/TASK each), or one directory, or nothing.
      given: key → text, the options that were given.
    """

    kind: str
    arguments: tuple[str, ...]
    given: Mapping[str, str]

    @property
    def name(self) -> str:
        """The measure with its options, which names a file: 'blimp,percent=10'. More seeds belong to the same file."""
        given = sorted((key, text) for key, text in self.given.items() if key != SEEDS)
        options = (f'{key}={text.replace("/", "+")}' for key, text in given)
        return ','.join([self.kind, *options])

    def __str__(self) -> str:
        """As it could be given."""
        options = (f'{key}={text}' for key, text in self.given.items())
        return ','.join([':'.join([self.kind, *self.arguments[:1]]), *self.arguments[1:], *options])

    @property
    def title(self) -> str:
        """As `str`, but without a directory: machines that keep the same files elsewhere measure the same."""
        return str(self) if self.kind == FINETUNE else self.name

    def values(self, key: str) -> tuple:
        """The values of an option, those of its default if it was not given; ConfigError for one that cannot be."""
        option = OPTIONS[self.kind][key]
        if key not in self.given:
            return option.default
        try:
            found = tuple(_parse(text, type(option.default[0])) for text in self.given[key].split('/'))
        except (ValueError, OverflowError):  # of what is no number, and of infinity as a whole one
            found = ()
        if not found or not all(map(option.holds, found)) or (len(found) > 1 and not option.takes_several):
            raise ConfigError(f'--then: {key}={self.given[key]} of {self.kind} must be {option.range}')
        return found

    def value(self, key: str):
        """The only value of an option."""
        return self.values(key)[0]

    @property
    def recipe(self) -> list[str]:
        """The options of fine-tuning that are keys of its recipe, as 'key=value,value'."""
        return [f'{key}={text.replace("/", ",")}' for key, text in self.given.items() if key != SEEDS]


def parse(texts: Sequence[str]) -> list[Measure]:
    """The measures in the values of `--then`; nothing is read.

    Raises:
      ConfigError: for a measure, a task or an option that there is not, and for one that is given twice.
    """
    found: list[Measure] = []
    for word in (word for text in texts for word in text.split(',') if word):
        head, colon, argument = word.partition(':')
        key, equals, value = word.partition('=')
        if head in OPTIONS:
            found.append(Measure(head, (argument,) if colon and argument else (), {}))
        elif not found or (colon and not equals) or head == 'dag':
            raise ConfigError(f'--then={word}: {_what_is_wrong(head, bool(equals))}. {_measures()}')
        elif equals:
            if key in found[-1].given:
                raise ConfigError(f'--then: {key} of {found[-1].kind} is given twice')
            found[-1] = dataclasses.replace(found[-1], given={**found[-1].given, key: value})
        else:
            found[-1] = dataclasses.replace(found[-1], arguments=(*found[-1].arguments, word))
    found = [_checked(measure) for measure in found]
    names = [(m.name, m.arguments if m.kind == FINETUNE else ()) for m in found]
    if twice := [str(m) for m, name in zip(found, names, strict=True) if names.count(name) > 1]:
        raise ConfigError(f'--then: {twice[0]} is asked for twice')
    return found


def _what_is_wrong(head: str, is_option: bool) -> str:
    if head == 'dag':
        return 'a picture of one row is nothing to compare models by; python -m mlm_jax.probe dag draws it'
    return 'an option stands behind its measure' if is_option else f'there is no measure {head!r}'


def _checked(measure: Measure) -> Measure:
    kind, arguments = measure.kind, measure.arguments
    if kind == FINETUNE:
        if not arguments:
            raise ConfigError('--then=finetune needs a task, as in finetune:glue/sst2')
        try:
            return dataclasses.replace(measure, arguments=tuple(suites.split_names(arguments)))
        except ConfigError as error:
            raise ConfigError(f'--then={measure}: {error}. {_measures()}') from None
    if unknown := [key for key in measure.given if key not in OPTIONS[kind]]:
        raise ConfigError(f'--then: {kind} has no option {unknown[0]!r}; it has {", ".join(OPTIONS[kind])}')
    for key in measure.given:
        measure.values(key)
    takes = 1 if kind in ARGUMENTS else 0
    if len(arguments) > takes:
        raise ConfigError(f'--then={measure}: {arguments[takes]!r} is no measure and no option. {_measures()}')
    if len(arguments) < takes:
        raise ConfigError(f'--then={kind} needs the directory of its files, as in {kind}:data/{kind}')
    for directory in arguments:
        paths.check_local_or_bucket(directory)
        paths.check_kind(directory, 'directory')
    return measure


def _parse(text: str, kind: type):
    if kind is bool:
        return {'true': True, 'false': False}.get(text.lower()) if text.lower() in ('true', 'false') else int('')
    if kind is int and float(text) != int(float(text)):
        raise ValueError(text)
    return kind(float(text))
