"""How programs, keys and notebooks name a trained model.

    runs/mlm           the workdir of a run: its newest checkpoint
    runs/mlm@1000      its checkpoint of step 1000; @0 is how the run began, made anew from its seed
    hf:models/bert     a directory as `save_pretrained` of transformers leaves it, with its tokenizer.json; or, if there
                       is none, the model of that name on the Hugging Face Hub, with or without @REVISION
    random:SOURCE      the same model without what it has learned
    ema:runs/mlm@1000  the moving average of its parameters that a run with `ema.decay` keeps; or ema:runs/mlm
    average:runs/mlm@1000,runs/mlm@2000
                       the mean of the parameters of several of these, but for random:
    average:runs/mlm@1000:0.2,runs/mlm@2000:0.8
                       a weighted mean; weights are divided by their sum

A directory that has a number behind an @ or a colon in its own name is that directory, unless it lies in a bucket.
Commas separate the sources of an average, whose directories therefore have none in their names; no shell takes any of
these signs for its own. All directories may lie in buckets, as in gs://BUCKET/runs/mlm@1000.
"""

import dataclasses
import hashlib
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from mlm_jax.files import buckets, hub, paths
from mlm_jax.files.errors import ConfigError

flags.disclaim_key_flags()  # the flags that are defined here belong to the program that calls for them

HUGGING_FACE, RANDOM, EMA, AVERAGE = hub.PREFIX, 'random:', 'ema:', 'average:'
GRAMMAR = (
    'WORKDIR, WORKDIR@STEP, ema:WORKDIR[@STEP], hf:DIRECTORY, hf:NAME, random:SOURCE or '
    'average:SOURCE[:WEIGHT],SOURCE[:WEIGHT],…'
)
_CONFIGURATION = 'continue:'  # configs/continue.py, which takes the name of a model
_WEIGHTED = re.compile(r'(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)')
_LONGEST_LABEL = 100  # characters
# Flags that programs of trained models had once, and what has taken their place.
FORMER_FLAGS = {
    'workdir': '--workdir is now --model={value} ({value}@STEP for a step)',
    'step': '--step is now a part of --model, as in --model=WORKDIR@{value}',
    'steps': '--steps is now a --model for each step, as in --model=WORKDIR@0 --model=WORKDIR@1000',
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The name of a trained model, taken apart.

    Attributes:
      text: as it is given.
      directory: the workdir of a run, or the directory of a checkpoint of Hugging Face, or its name on the hub; of an
        average, that of the first.
      step: of the checkpoint; None takes the newest.
      is_hugging_face: whether `directory` is of Hugging Face.
      is_random: whether the parameters are drawn anew.
      is_ema: whether the parameters are the moving average that the run has kept.
      parts: of an average, its sources and their weights, which are above 0 and have any sum; otherwise ().
    """

    text: str
    directory: pathlib.Path
    step: int | None = None
    is_hugging_face: bool = False
    is_random: bool = False
    is_ema: bool = False
    parts: tuple[tuple['Source', float], ...] = ()

    @property
    def members(self) -> tuple[tuple['Source', float], ...]:
        """The checkpoints that its parameters are the mean of, with their weights: `parts`, or itself alone."""
        return self.parts or ((self, 1.0),)

    @property
    def on_disk(self) -> pathlib.Path:
        """`directory`; of a model of Hugging Face in a bucket or on the hub, a copy, for files that others read."""
        return buckets.local(hub.model(self.directory)) if self.is_hugging_face else self.directory

    def __str__(self) -> str:
        """As it is given."""
        return self.text


def parse(text: str) -> Source:
    """Takes a name apart; nothing is read.

    Raises:
      ConfigError: for a URL that is no bucket, a file, an empty name, and a prefix where it makes no sense.
    """
    paths.check_local_or_bucket(text)
    if text.startswith(_CONFIGURATION):
        raise ConfigError(f'{text} is a configuration, for --config: here, give {text.removeprefix(_CONFIGURATION)}')
    if text.startswith(AVERAGE):
        return _parse_average(text)
    there = text.removeprefix(RANDOM)
    is_ema = text.startswith(EMA)
    name = there.removeprefix(EMA if is_ema else HUGGING_FACE)
    is_random, is_hugging_face = there != text, name != there and not is_ema
    if is_ema and name.startswith(HUGGING_FACE):
        raise ConfigError(f'{text}: only a run keeps a moving average of its parameters; give ema:WORKDIR[@STEP]')
    if not name or name.startswith((RANDOM, EMA, AVERAGE)):
        raise ConfigError(f'{text!r} names no model: give {GRAMMAR}')
    paths.check_kind(name, 'directory')
    workdir, _, digits = name.rpartition('@')
    is_directory = is_hugging_face or _is_on_disk(name)
    has_step = bool(workdir) and digits.isdecimal() and not is_directory
    if has_step and is_random:
        raise ConfigError(f'{text}: a model without what it has learned has no steps; write {RANDOM}{workdir}')
    directory = buckets.path(workdir if has_step else name).expanduser()
    return Source(text, directory, int(digits) if has_step else None, is_hugging_face, is_random, is_ema)


def pin(text: str, newest_step: Callable[[Source], int | None] = lambda run: None) -> str:
    """The name with what it means at this time: the step of a run, and the commit of a model on the hub.

    Args:
      text: a name, such as runs/mlm or hf:ORGANIZATION/NAME.
      newest_step: returns the step of a run that has none in its name; None, as by default, leaves the name as it is.

    Returns:
      Such as runs/mlm@1000 or hf:ORGANIZATION/NAME@COMMIT.

    Raises:
      ConfigError: as `parse`; and if there is no such model, or the hub cannot be reached.
    """
    if text.startswith(AVERAGE):
        parts = text.removeprefix(AVERAGE).split(',')
        named = [_parse_part(part, text)[0].text for part in parts]
        return AVERAGE + ','.join(part.replace(name, pin(name, newest_step), 1) for part, name in zip(parts, named))
    source = parse(text)
    if source.is_hugging_face:
        pinned = hub.pinned_model(source.directory)
        return text if pinned is None else text[: text.index(HUGGING_FACE)] + HUGGING_FACE + pinned
    step = newest_step(source) if source.step is None and not source.is_random else None
    return text if step is None else f'{text}@{step}'


def can_mean(text: str, pinned: str) -> bool:
    """Whether a name can have been given for one that `pin` has returned, whatever it would mean at this time."""
    if not text or not pinned or text == pinned:
        return text == pinned
    now, then = parse(text), parse(pinned)
    if [weight for _, weight in now.members] != [weight for _, weight in then.members]:
        return False
    return all(_can_mean(one, other) for (one, _), (other, _) in zip(now.members, then.members))


def _can_mean(now: Source, then: Source) -> bool:
    if any(getattr(now, kind) != getattr(then, kind) for kind in ('is_hugging_face', 'is_random', 'is_ema')):
        return False
    if now.directory == then.directory or not now.is_hugging_face or now.directory.exists():
        return now.directory == then.directory and now.step in (None, then.step)
    name, _, revision = str(now.directory).partition('@')
    return name == str(then.directory).partition('@')[0] and not hub.COMMIT.fullmatch(revision)


def _parse_average(text: str) -> Source:
    found = [_parse_part(part, text) for part in text.removeprefix(AVERAGE).split(',')]
    weights = [weight for _, weight in found if weight is not None]
    if weights and len(weights) < len(found):
        raise ConfigError(f'{text}: some sources have a weight, and others none; give one to each, or to none')
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise ConfigError(f'{text}: weights must lie above 0; leave out what has none')
    parts = tuple((source, 1.0 if weight is None else weight) for source, weight in found)
    first = parts[0][0]
    for source, _ in parts:
        if source.is_random:
            raise ConfigError(f'{text}: {source} has learned nothing that could be averaged')
        if source.is_hugging_face != first.is_hugging_face:
            raise ConfigError(f'{text}: an average is one of runs, or one of checkpoints of Hugging Face')
    return Source(text, first.directory, None, first.is_hugging_face, parts=parts)


def _parse_part(part: str, text: str) -> tuple[Source, float | None]:
    """A source of an average, and its weight, if it has one."""
    match = _WEIGHTED.fullmatch(part)
    if match and _is_on_disk(_path(part)):
        match = None
    name = match[1] if match else part
    if not name or name.startswith(AVERAGE):
        raise ConfigError(f'{text}: {part!r} is not the name of a model; an average is average:SOURCE,SOURCE,…')
    return parse(name), float(match[2]) if match else None


def _is_on_disk(name: str) -> bool:
    """Whether there is such a directory; a bucket is not asked, so that a name means the same at any time."""
    return not buckets.is_bucket(name) and pathlib.Path(name).expanduser().exists()


def _path(text: str) -> str:
    """What stands behind the prefixes of a source that is no average."""
    return text.removeprefix(RANDOM).removeprefix(EMA).removeprefix(HUGGING_FACE)


def parse_runs(texts: Sequence[str], purpose: str) -> list[Source]:
    """As `parse`, for programs that need more of a run than its parameters: its configuration and its rows.

    Args:
      texts: names of models.
      purpose: what needs it, as the subject of a sentence: 'probe entropy'.

    Raises:
      ConfigError: also for a checkpoint of Hugging Face.
    """
    found = [parse(text) for text in texts]
    for source in found:
        if source.is_hugging_face:
            raise ConfigError(
                f'{purpose} reads the held-out rows that a run was trained beside, and {source} has none: give the '
                'workdir of a run, as in --model=runs/mlm'
            )
    return found


def define_flag(text: str) -> None:
    """Defines `--model`, which may be repeated; `text` says what several are for."""
    paths.define_flag('model', None, f'{GRAMMAR}; {text}', multiple=True)


def define_data_flag() -> None:
    """Defines `--data_directory`, for programs that read the prepared rows of runs."""
    paths.define_flag(
        'data_directory', '',
        'Directory of the prepared rows of the runs, if they are not (or not from here) where data.directory of the '
        'run says: after a move, or on another machine.', 'directory',
    )  # fmt: skip


def labels(sources: Sequence[Source]) -> list[str]:
    """Short names that tell models apart: the last parts of their paths, behind `random-`, `ema-` or `average-`.

    Raises:
      ConfigError: when two are the same.
    """
    different = list(dict.fromkeys(_path(member.text) for source in sources for member, _ in source.members))
    parts = [pathlib.Path(name).expanduser().absolute().parts for name in different]
    for length in range(1, max(map(len, parts)) + 1):
        short = ['/'.join(part[-length:]) for part in parts]
        if len(set(short)) == len(short):
            break
    by_name = dict(zip(different, short, strict=True))
    found = [_label(source, by_name) for source in sources]
    if len(set(found)) < len(found):
        raise ConfigError(f'a --model is given twice: {", ".join(map(str, sources))}')
    return found


def _label(source: Source, by_name: Mapping[str, str]) -> str:
    if not source.parts:
        return 'random-' * source.is_random + 'ema-' * source.is_ema + by_name[_path(source.text)]
    is_uniform = len({weight for _, weight in source.parts}) == 1
    members = [_label(part, by_name) + ('' if is_uniform else f':{weight:g}') for part, weight in source.parts]
    label = f'average-{"+".join(members)}'
    if len(label) <= _LONGEST_LABEL:
        return label
    return f'average-of-{len(members)}-{hashlib.sha256(source.text.encode()).hexdigest()[:8]}'
