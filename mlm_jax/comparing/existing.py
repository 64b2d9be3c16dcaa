"""The runs of a comparison that are there: whether they are those that were asked for, and how far they are."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.comparing import configurations
from mlm_jax.comparing.configurations import Candidate
from mlm_jax.data import prepared_data
from mlm_jax.files.errors import ConfigError
from mlm_jax.training import checkpoints
from mlm_jax.training.workdir import read_config


def updates_done(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> int:
    """The steps that are done, and saved, of the run in `workdir`; 0 where there is none.

    Raises:
      ConfigError: when the run is not that of `config`, or has read other rows than those that are there now.
    """
    if not (workdir / 'config.json').exists():
        return 0
    data = prepared_data.load(config.data)
    if different := _differences(workdir, config, data, configurations.WITHOUT_INFLUENCE):
        lines = (f'  {key}: {a!r} there, {b!r} now' for key, (a, b) in different.items())
        raise ConfigError(
            f'{workdir} holds a run of another configuration:\n' + '\n'.join(lines) + '\n'
            'Ask for what is there, choose another --output, or delete that directory to train it again'
        )
    # Of a run that is over, the report reads the position only; one that is not is looked at when it goes on.
    if not (found := checkpoints.newest_position(workdir / 'checkpoints')):
        return 0
    step, position = found
    _check_rows(position.data, data, workdir)
    return step


def _differences(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, data: prepared_data.PreparedData, ignored: Sequence[str]
) -> dict[str, tuple]:
    """Key → (value in `workdir`, value in `config`), but for the `ignored` keys; durations in steps."""
    old = config_lib.in_steps(read_config(workdir), data.split('train').rows / config.batch_size)
    return configurations.differences(old, config_lib.resolve(config, data), ignored)


def _check_rows(before: dict, data: prepared_data.PreparedData, workdir: pathlib.Path) -> None:
    """Raises ConfigError where a run has read other rows than those of `data`: results would be of two corpora.

    Args:
      before: from where the run has read (`checkpoints.Position.data`); {} where that is not known.
      data: the data now.
      workdir: of the run.
    """
    read = {reader['name']: reader for reader in before.get('readers', ()) if reader['share']}
    for now in data.reading(1).readers:
        rows = read.get(now.name, {})
        for kind, words in (('fingerprint', 'read other rows'), ('held_out', 'was evaluated on other held-out rows')):
            if rows.get(kind) and rows[kind] != getattr(now, kind):
                raise ConfigError(
                    f'{workdir} holds a run that {words} of {now.name} than those that lie there now, which were '
                    'prepared anew. Put the former ones back, choose another --output, or delete that directory to '
                    'train it again'
                )


def train_seconds(workdir: pathlib.Path) -> float:
    """The training time of a finished run; ConfigError where no checkpoint says it."""
    if not (found := checkpoints.newest_position(workdir / 'checkpoints')):
        raise ConfigError(f'{workdir} has no whole checkpoint: delete that directory to train the run again')
    return found[1].train_seconds


def labelled_as_before(
    candidates: Sequence[Candidate], output: pathlib.Path, note: Callable[[str], None]
) -> list[Candidate]:
    """The candidates under the labels of their runs in `output`.

    Labels are made of what tells configurations apart, so that a further one may change those of all.

    Args:
      candidates: with their lengths.
      output: of the comparison.
      note: receives a line for each other label.

    Raises:
      ConfigError: when a label of before is now made for another one.
    """
    made = [candidate.label for candidate in candidates]
    there = {path.parent.parent.name: path.parent for path in output.glob('*/seed*/config.json')}
    unknown, found = {label: workdir for label, workdir in there.items() if label not in made}, []
    for candidate in candidates:
        is_new, data = candidate.label not in there, prepared_data.load(candidate.config.data)
        ignored = (*configurations.WITHOUT_INFLUENCE, 'seed')
        for label, workdir in unknown.items():
            if is_new and not _differences(workdir, candidate.config, data, ignored):
                note(f'{candidate.label} is {label} in {output}')
                candidate = dataclasses.replace(candidate, label=label)
                break
        found.append(candidate)
    if len({candidate.label for candidate in found}) < len(found):
        raise ConfigError(f'{output} holds runs whose labels others would now have: name each with --label=NAME')
    return found
