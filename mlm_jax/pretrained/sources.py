"""How programs, keys and notebooks name a trained model.

    runs/mlm           the workdir of a run: its newest checkpoint
    runs/mlm@1000      its checkpoint of step 1000; @0 is how the run began, made anew from its seed
    hf:models/bert     a directory as `save_pretrained` of transformers leaves it, with its tokenizer.json
    random:SOURCE      the same model without what it has learned

A directory that has a number behind an @ in its own name is that directory.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from mlm_jax.files import paths
from mlm_jax.files.errors import ConfigError

HUGGING_FACE, RANDOM = 'hf:', 'random:'
GRAMMAR = 'WORKDIR, WORKDIR@STEP, hf:DIRECTORY or random:SOURCE'
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
      directory: the workdir of a run, or the directory of a checkpoint of Hugging Face.
      step: of the checkpoint; None takes the newest.
      is_hugging_face: whether `directory` is of Hugging Face.
      is_random: whether the parameters are drawn anew.
    """

    text: str
    directory: pathlib.Path
    step: int | None = None
    is_hugging_face: bool = False
    is_random: bool = False

    def __str__(self) -> str:
        """As it is given."""
        return self.text


def parse(text: str) -> Source:
    """Takes a name apart; nothing is read.

    Raises:
      ConfigError: for a URL, a file, an empty name, and `random:` where it makes no sense.
    """
    paths.check_local(text)
    there = text.removeprefix(RANDOM)
    name = there.removeprefix(HUGGING_FACE)
    is_random, is_hugging_face = there != text, name != there
    if not name or name.startswith(RANDOM):
        raise ConfigError(f'{text!r} names no model: give {GRAMMAR}')
    paths.check_kind(name, 'directory')
    workdir, _, digits = name.rpartition('@')
    is_directory = is_hugging_face or pathlib.Path(name).expanduser().exists()
    has_step = bool(workdir) and digits.isdecimal() and not is_directory
    if has_step and is_random:
        raise ConfigError(f'{text}: a model without what it has learned has no steps; write {RANDOM}{workdir}')
    directory = pathlib.Path(workdir if has_step else name).expanduser()
    return Source(text, directory, int(digits) if has_step else None, is_hugging_face, is_random)


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


def labels(sources: Sequence[Source]) -> list[str]:
    """Short names that tell models apart: the last parts of their paths, `random-` before those without learning.

    Raises:
      ConfigError: when two are the same.
    """
    names = [source.text.removeprefix(RANDOM).removeprefix(HUGGING_FACE) for source in sources]
    different = list(dict.fromkeys(names))
    parts = [pathlib.Path(name).expanduser().absolute().parts for name in different]
    for length in range(1, max(map(len, parts)) + 1):
        short = ['/'.join(part[-length:]) for part in parts]
        if len(set(short)) == len(short):
            break
    by_name = dict(zip(different, short, strict=True))
    found = ['random-' * source.is_random + by_name[name] for source, name in zip(sources, names, strict=True)]
    if len(set(found)) < len(found):
        raise ConfigError(f'a --model is given twice: {", ".join(map(str, sources))}')
    return found
