"""Writes docs/results.md, and the table of results in README.md, from the experiments in this directory.

    python docs/results/make.py                  # the pages, and figures that are not there yet
    python docs/results/make.py EXPERIMENT …     # also draws the figures of these experiments anew

An experiment is a directory with experiment.json and metrics.json, as `python -m mlm_jax.compare` writes them;
mlm_jax/comparing/experiment.py describes this form. A new directory is a new section at the end of the page; page.json
holds the order, and which cells the README shows.
"""

import pathlib
import sys

from mlm_jax.comparing import experiment, figures, results_page
from mlm_jax.files import atomic
from mlm_jax.files.errors import ConfigError

HERE = pathlib.Path(__file__).resolve().parent
RESULTS, README = HERE.parent / 'results.md', HERE.parents[1] / 'README.md'


def pages() -> dict[pathlib.Path, str]:
    """Path → content of the pages that are made of the experiments."""
    page, experiments = results_page.read_page(HERE)
    highlights = results_page.make_highlights(page, experiments, 'docs/results')
    return {
        RESULTS: results_page.make_page(page, experiments, 'results'),
        README: results_page.replace_between(README.read_text(encoding='utf-8'), highlights),
    }


def main(names: list[str]) -> None:
    """Draws figures, and writes the pages."""
    _, experiments = results_page.read_page(HERE)
    if unknown := [name for name in names if name not in experiments]:
        raise ConfigError(f'there is no experiment {unknown[0]!r}; there are {", ".join(experiments)}')
    for name, entry in experiments.items():
        path = HERE / name / experiment.FIGURE
        if entry.figure and (name in names or not path.exists()):
            figures.draw(entry, path)
            print(path)
    for path, text in pages().items():
        atomic.write_bytes(path, text.encode())
        print(path)


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f'error: {error}')
