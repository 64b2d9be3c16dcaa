"""What a comparison leaves: an experiment as data (`experiment.py`), its figure, and a page of it."""

import dataclasses
import datetime
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mlm_jax.comparing import comparison, experiment, figures, results_page
from mlm_jax.comparing.budgets import UNITS
from mlm_jax.comparing.comparison import Entry
from mlm_jax.comparing.experiment import Experiment, Table
from mlm_jax.files import atomic
from mlm_jax.files.errors import ConfigError
from mlm_jax.training.workdir import read_json

PAGE = 'report.md'
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax')  # of environment.json, those that decide what is computed
# What a person may have written into experiment.json since it was made.
_WRITTEN_BY_HAND = ('title', 'question', 'needs', 'notes', 'not_run', 'alternative_text')


def make_experiment(
    entries: Mapping[str, Entry],
    budget: str,
    metric: str,
    judged: Sequence[Table],
    workdirs: Sequence[pathlib.Path],
    command: str,
    settings: Mapping[str, str],
    title: str,
) -> Experiment:
    """The experiment of a comparison, of the seeds that are complete.

    Args:
      entries: label → runs; all with the same seeds.
      budget: a key of `UNITS`.
      metric: as for `comparison.choose_metric`.
      judged: tables of what was measured after pretraining.
      workdirs: of all runs, whose environment.json says with what they were trained.
      command: that makes it.
      settings: name → value.
      title: of the experiment.

    Raises:
      ConfigError: when a run does not have the metric at its end.
    """
    first = next(iter(entries.values()))
    return Experiment(
        title=title,
        question=f'How do these configurations compare at equal {UNITS[budget]}?',
        commands=(command,),
        needs='a download',
        settings=settings,
        **_measured(workdirs),
        seeds=tuple(first.runs),
        tables=(comparison.held_out_table(entries, budget, metric), *judged),
        curves=tuple(comparison.curves(entries)),
        figure=tuple(comparison.panels(entries, budget, comparison.choose_metric(first, metric), judged)),
        alternative_text=f'The held-out metric against {UNITS[budget]}, and what was measured after pretraining',
    )


def check(directory: pathlib.Path) -> None:
    """Raises ConfigError where `write` would find an experiment.json that a person has damaged."""
    if (directory / experiment.EXPERIMENT).exists():
        experiment.read(directory)


def write(made: Experiment, directory: pathlib.Path) -> str:
    """Writes the files of an experiment, its figure and report.md; returns the Markdown of the page.

    What a person has written into experiment.json, such as a question or notes, stays there.
    """
    made = _with_words_of(made, directory / experiment.EXPERIMENT)
    experiment.write(made, directory)
    figures.draw(made, directory / experiment.FIGURE)
    text = results_page.section(made, '', 1)
    atomic.write_bytes(directory / PAGE, text.encode())
    return text


def _with_words_of(made: Experiment, path: pathlib.Path) -> Experiment:
    """The experiment with the texts of an earlier file: those that `make_experiment` makes are always the same."""
    if not path.exists():
        return made
    old = experiment.read(path.parent)
    return dataclasses.replace(made, **{key: getattr(old, key) for key in _WRITTEN_BY_HAND if getattr(old, key)})


def _measured(workdirs: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Commit, date, hardware and versions of runs; several where they differ."""
    found = [environment for workdir in workdirs if (environment := _environment(workdir))]
    ended = max((workdir / 'metrics.jsonl').stat().st_mtime for workdir in workdirs)
    return {
        'commit': ' and '.join(dict.fromkeys(_short(each['commit']) for each in found if each['commit'])) or None,
        'date': datetime.date.fromtimestamp(ended).isoformat(),
        'hardware': ' and '.join(dict.fromkeys(_hardware(each['devices']) for each in found)) or None,
        'versions': {
            name: version for each in found for name, version in each['versions'].items() if name in _LIBRARIES
        },
    }


def _environment(workdir: pathlib.Path) -> dict | None:
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
