"""What a comparison leaves: an experiment as data (`experiment.py`), its figure, and a page of it."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

from mlm_jax.comparing import comparison, experiment, figures, measured, results_page
from mlm_jax.comparing.budgets import UNITS
from mlm_jax.comparing.comparison import Entry
from mlm_jax.comparing.experiment import Experiment, Table
from mlm_jax.files import atomic
from mlm_jax.files.errors import ConfigError

PAGE = 'report.md'


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
        question=_question(budget),
        commands=(command,),
        needs='a download',
        settings=settings,
        **measured.of_runs(workdirs),
        seeds=tuple(first.runs),
        tables=(comparison.held_out_table(entries, budget, metric), *judged),
        curves=tuple(comparison.curves(entries)),
        figure=tuple(comparison.panels(entries, budget, comparison.choose_metric(first, metric), judged)),
        alternative_text=_alternative_text(budget),
    )


def _question(budget: str) -> str:
    return f'How do these configurations compare at equal {UNITS[budget]}?'


def _alternative_text(budget: str) -> str:
    return f'The held-out metric against {UNITS[budget]}, and what was measured after pretraining'


def check(directory: pathlib.Path) -> None:
    """Raises ConfigError where `write` would find an experiment.json that a person has damaged."""
    if (directory / experiment.EXPERIMENT).exists():
        experiment.read(directory)


def write(made: Experiment, directory: pathlib.Path) -> str:
    """Writes the files of an experiment, its figure and report.md; returns the Markdown of the page.

    What a person has written into experiment.json, such as a question or notes, stays there. Notes about numbers that
    are not there, as those of a measure that is left out, are left out of the page, which is said.
    """
    made = experiment.with_words_of(made, directory, (*map(_question, UNITS), *map(_alternative_text, UNITS)))
    experiment.write(made, directory)
    figures.draw(made, directory / experiment.FIGURE)
    try:
        text = results_page.section(made, '', 1)
    except ConfigError as error:
        print(f'{directory / experiment.EXPERIMENT}: {error}. Its notes are left out of {PAGE}', file=sys.stderr)
        text = results_page.section(dataclasses.replace(made, notes=''), '', 1)
    atomic.write_bytes(directory / PAGE, text.encode())
    return text
