"""Markdown of experiments (`experiment.py`): a section for each, a page of sections, and a table of chosen results.

A text may refer to a cell: `{TABLE|ROW|COLUMN}` in the notes of an experiment, `{EXPERIMENT|TABLE|ROW|COLUMN}` in a
page. So the numbers in sentences are those of the tables.
"""

import dataclasses
import json
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

from mlm_jax.comparing import experiment as experiment_lib
from mlm_jax.comparing.experiment import Experiment, Table
from mlm_jax.files import markdown
from mlm_jax.files.errors import ConfigError

PAGE = 'page.json'
VERDICTS = ('seen', 'in part', 'not seen', 'refuted', 'open')  # of a claim
LINE = 130  # characters of a line of prose
# Between these lines of a page that is written by hand stands what is made of the data.
BEGIN, END = '<!-- made by docs/results/make.py: -->', '<!-- end of what docs/results/make.py makes -->'
_REFERENCE = re.compile(r'\{([^{}]+)\}')


@dataclasses.dataclass(frozen=True)
class Highlight:
    """A row of the table of chosen results.

    Attributes:
      what: was measured, on what.
      result: a text with references to cells.
      compared: likewise, of what the result is compared with.
      experiment: by whose commit and hardware it was measured, unless the other fields say it.
      measured: commit and hardware, a text with references to cells; '' takes those of the experiment.
    """

    what: str
    result: str
    compared: str
    experiment: str
    measured: str = ''


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper promises, and what was seen of it.

    Attributes:
      claim: the promise, and whose it is.
      verdict: one of `VERDICTS`.
      evidence: a text with references to cells: what was measured, and how sure it is.
      size: of the models and of the data.
      experiments: the names of the experiments that show it; none if it is open.
    """

    claim: str
    verdict: str
    evidence: str
    size: str = ''
    experiments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page holds besides its experiments: page.json.

    Attributes:
      title: of the page.
      introduction: paragraphs below it.
      experiments: names of directories, in their order on the page; others come behind them, by their names.
      highlights: of the table of chosen results.
      claims: of papers, judged by the experiments.
      figure: the experiment whose figure stands beside that table.
      caption: of that figure, with references to cells.
    """

    title: str
    introduction: str
    experiments: tuple[str, ...]
    highlights: tuple[Highlight, ...] = ()
    claims: tuple[Claim, ...] = ()
    figure: str = ''
    caption: str = ''


def read_page(directory: pathlib.Path) -> tuple[Page, dict[str, Experiment]]:
    """page.json of a directory, and the experiments in its subdirectories, by name, in the order of the page.

    Raises:
      ConfigError: for a file that is not of its form, and for an experiment that page.json names and that is not there.
    """
    path = directory / PAGE
    try:
        values = json.loads(path.read_bytes())
        highlights = tuple(Highlight(**entry) for entry in values.pop('highlights', ()))
        claims = tuple(_claim(entry) for entry in values.pop('claims', ()))
        page = Page(**{**values, 'experiments': tuple(values['experiments'])}, highlights=highlights, claims=claims)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f'{path} is not the description of a page of results: {error}') from None
    there = sorted(found.parent.name for found in directory.glob(f'*/{experiment_lib.EXPERIMENT}'))
    if missing := [name for name in page.experiments if name not in there]:
        raise ConfigError(f'{path} names the experiment {missing[0]!r}, and there is no directory of that name')
    names = [*page.experiments, *(name for name in there if name not in page.experiments)]
    return page, {name: experiment_lib.read(directory / name) for name in names}


def make_page(page: Page, experiments: Mapping[str, Experiment], where: str) -> str:
    """The Markdown of a page.

    Args:
      page: its title and introduction.
      experiments: by name, in their order.
      where: the path of their directories as links of the page give it, such as 'results'.
    """
    sections = [section(entry, f'{where}/{name}/', 2) for name, entry in experiments.items()]
    if page.claims:
        sections.insert(0, make_claims(page, experiments))
    return '\n'.join([f'# {page.title}\n', f'{page.introduction}\n', *sections])


def make_claims(page: Page, experiments: Mapping[str, Experiment]) -> str:
    """The section about what papers promise, with links to the experiments on the same page."""
    entries = []
    for entry in page.claims:
        titles = [_named(experiments, name).title for name in entry.experiments]
        links = ', '.join(f'[{title}](#{markdown.anchor(title)})' for title in titles)
        verdict = entry.verdict.capitalize() + (f' ({entry.size})' if entry.size else '')
        source = f' ({links})' if links else ''
        text = f'* **{entry.claim}** {verdict}: {_filled(entry.evidence, experiments)}{source}'
        entries.append(_wrapped(text, '  '))
    return '## What the papers promise\n\n' + '\n'.join(entries) + '\n'


def section(entry: Experiment, files: str, level: int) -> str:
    """The Markdown of an experiment.

    Args:
      entry: the experiment.
      files: the path of its directory as links give it, with a slash at its end; '' for the same directory.
      level: of its heading.

    Raises:
      ConfigError: when the notes refer to a cell that there is not.
    """
    parts = [f'{"#" * level} {entry.title}', entry.question]
    if entry.commands:
        needs = f'<!-- needs: {entry.needs} -->\n' if entry.needs else ''
        parts.append(needs + '```bash\n' + '\n'.join(entry.commands) + '\n```')
    if measured := describe_measurement(entry):
        parts.append(measured)
    if entry.settings:
        parts.append('\n'.join(f'* {name}: {value}' for name, value in entry.settings.items()))
    if entry.notes:
        parts.append(_wrapped(fill(entry.notes, lambda path: _cell_of(entry, path))))
    parts += [f'{table.title}\n\n{make_table(table)}'.rstrip('\n') for table in entry.tables]
    if entry.figure:
        parts.append(f'![{entry.alternative_text}]({files}{experiment_lib.FIGURE})')
    if entry.not_run:
        parts.append(_wrapped(f'**Not run:** {entry.not_run}'))
    return '\n\n'.join(parts) + '\n'


def describe_measurement(entry: Experiment) -> str:
    """Commit, date, hardware, versions and seeds, as far as they are known, in one line."""
    versions = ', '.join(f'{name} {version}' for name, version in entry.versions.items())
    seeds = f'seed{"s" if len(entry.seeds) > 1 else ""} {", ".join(map(str, entry.seeds))}' if entry.seeds else ''
    commit = f'commit {entry.commit}' if entry.commit else ''
    text = '; '.join(filter(None, [commit, entry.date, entry.hardware, versions, seeds]))
    return f'*{text}*' if text else ''


def make_table(table: Table) -> str:
    """The Markdown of a table; the leading columns that hold only text are aligned to the left."""
    titles = ['', *(f'{column.name}, {column.unit}' if column.unit else column.name for column in table.columns)]
    rows = [
        [row.name, *(experiment_lib.format_cell(v, c.format) for v, c in zip(row.values, table.columns, strict=True))]
        for row in table.rows
    ]
    num_text = 1
    for i in range(len(table.columns)):
        if not all(isinstance(row.values[i], str | None) for row in table.rows):
            break
        num_text += 1
    return markdown.table(titles, rows, num_text_columns=num_text)


def make_highlights(page: Page, experiments: Mapping[str, Experiment], where: str) -> str:
    """The table of chosen results, and the figure beside it.

    Args:
      page: with its highlights.
      experiments: by name.
      where: the path of their directories as links of the page give it.

    Raises:
      ConfigError: when a reference leads nowhere.
    """
    rows = []
    for entry in page.highlights:
        source = _named(experiments, entry.experiment)
        measured = _filled(entry.measured, experiments) or ', '.join(filter(None, (source.commit, source.hardware)))
        rows.append([entry.what, _filled(entry.result, experiments), _filled(entry.compared, experiments), measured])
    titles = ['what', 'result', 'to compare with', 'commit, hardware']
    parts = [markdown.table(titles, rows, num_text_columns=len(titles))]
    if page.figure:
        text = _named(experiments, page.figure).alternative_text
        parts.append(f'![{text}]({where}/{page.figure}/{experiment_lib.FIGURE})\n')
        parts += [f'*{_filled(page.caption, experiments)}*\n'] if page.caption else []
    return '\n'.join(parts)


def replace_between(text: str, made: str) -> str:
    """A page that is written by hand, with what is made of the data between the lines `BEGIN` and `END`.

    Raises:
      ConfigError: when it does not have these lines once each, in this order.
    """
    before, begin, rest = text.partition(f'{BEGIN}\n')
    _, end, after = rest.partition(f'{END}\n')
    if not (begin and end) or BEGIN in after or END in after:
        raise ConfigError(f'the page must have the lines {BEGIN} and {END} once each')
    return f'{before}{begin}\n{made}\n{end}{after}'


def fill(text: str, resolve: Callable[[str], str]) -> str:
    """A text with each `{PATH}` in it replaced by `resolve(PATH)`."""
    return _REFERENCE.sub(lambda match: resolve(match[1]), text)


def _claim(entry: Mapping) -> Claim:
    claim = Claim(**{**entry, 'experiments': tuple(entry.get('experiments', ()))})
    if claim.verdict not in VERDICTS:
        raise ValueError(f'the verdict {claim.verdict!r} of a claim must be one of {", ".join(VERDICTS)}')
    return claim


def _filled(text: str, experiments: Mapping[str, Experiment]) -> str:
    """A text of a page with its references, EXPERIMENT|TABLE|ROW|COLUMN, replaced."""

    def resolve(path: str) -> str:
        name, _, rest = path.partition('|')
        return _cell_of(_named(experiments, name), rest)

    return fill(text, resolve)


def _cell_of(entry: Experiment, path: str) -> str:
    parts: Sequence[str] = path.split('|')
    if len(parts) != 3:
        raise ConfigError(f'{entry.title}: {{{path}}} is not TABLE|ROW|COLUMN')
    cell, column = entry.table(parts[0]).cell(parts[1], parts[2])
    return experiment_lib.format_cell(cell, column.format)


def _wrapped(text: str, further_indent: str = '') -> str:
    return textwrap.fill(text, LINE, subsequent_indent=further_indent, break_long_words=False, break_on_hyphens=False)


def _named(experiments: Mapping[str, Experiment], name: str) -> Experiment:
    if name not in experiments:
        raise ConfigError(f'there is no experiment {name!r}; there are {", ".join(experiments)}')
    return experiments[name]
