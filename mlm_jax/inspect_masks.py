"""Shows what a configuration masks: in color in the terminal, as an HTML page, and as a picture.

    python -m mlm_jax.inspect_masks --config=configs/masking.py:spans
    python -m mlm_jax.inspect_masks --config=configs/masking.py:fully_explored --output=masks --step=1000

The rows and the masks are exactly those of a training run from --step on. If a text has several masks, each of them
makes a row. With --output, the program writes masks.html, masks.png and statistics.json into that directory.
"""

import html
import json
import sys
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.analysis.mask_statistics import KINDS, MaskStatistics, kinds
from mlm_jax.config import command_line
from mlm_jax.data import masking_tables, prepared_data
from mlm_jax.data.prepared_data import PreparedData
from mlm_jax.data.rows import Batches
from mlm_jax.data.tokenizers import AnyTokenizer, Tokenizer
from mlm_jax.files import atomic, buckets, paths
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.training import build, mask_ratio
from mlm_jax.training.step import draw_masks

# Kind of mask → the color codes of a terminal, and the color in HTML.
COLORS = {1: ('41;97', '#e57373'), 2: ('43;30', '#ffd54f'), 3: ('44;97', '#64b5f6'), 4: ('100;97', '#bdbdbd')}
_STYLE = 'body{font:16px/1.6 sans-serif;max-width:60em;margin:2em auto}mark{border-radius:3px}td{padding:0 1em}'
BRACKETS = {1: '[]', 2: '{}', 3: '()', 4: '<>'}  # instead of colors


def _run(config: ml_collections.ConfigDict, data: PreparedData) -> build.Run:
    """The functions of a training run."""
    return build.make_run(config, data.vocabulary, data.rows_between_visits, data.tables(config.masking))


def masked_batches(
    config: ml_collections.ConfigDict, data: PreparedData, first_step: int, num_texts: int
) -> Iterator[tuple[MaskedBatch, np.ndarray]]:
    """Yields the batches of a training run, and for each of their rows the tokens that were dropped for lack of a slot.

    Args:
      config: a resolved configuration.
      data: the prepared data.
      first_step: the step of the first batch.
      num_texts: the least number of texts in all batches together.

    Yields:
      A batch of B·K rows, where K is the number of masks of a text, and int32[B·K].
    """
    run = _run(config, data)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    batches = Batches(data.training_rows(), data.order(config), config.batch_size, mesh_lib.batch_sharding(mesh))

    @jax.jit
    def draw(tokens_BxT: jax.Array, step: jax.Array):
        return draw_masks(run.masking, config.seed, step, tokens_BxT)

    for step in range(first_step, first_step - (-num_texts // config.batch_size)):
        yield jax.device_get(draw(batches(step), np.int32(step)))


def text_of(
    tokenizer: AnyTokenizer,
    tokens_T: np.ndarray,
    inputs_T: np.ndarray,
    kinds_T: np.ndarray,
    paint: Callable[[str, int], str],
) -> str:
    """A row as text, in which chosen tokens are painted, each with the token that replaces it.

    Args:
      tokenizer: of the row.
      tokens_T: int[T], the tokens of the text.
      inputs_T: int[T], the tokens that the model reads.
      kinds_T: int[T], as `analysis.mask_statistics.kinds` returns them.
      paint: (text, kind) → text; the kind 0 is text that is left alone.
    """
    v, parts = tokenizer.vocabulary, []
    for token, new, kind in zip(tokens_T.tolist(), inputs_T.tolist(), kinds_T.tolist()):
        if token == v.pad_id:
            continue
        text = tokenizer.id_to_piece(token)
        space, text = ' ' * text.startswith('▁'), text.removeprefix('▁') or '▁'
        if token in v.special_ids:
            text = f' {text} '
        if kind and new not in (token, v.mask_id):
            text += f'→{tokenizer.id_to_piece(new).removeprefix("▁")}'
        parts += [paint(space, 0), paint(text, kind)]
    return ''.join(parts)


def paint_terminal(text: str, kind: int) -> str:
    """The text in the color of its kind, by the codes of a terminal."""
    return f'\033[{COLORS[kind][0]}m{text}\033[0m' if kind else text


def paint_plain(text: str, kind: int) -> str:
    """The text between the brackets of its kind."""
    return BRACKETS[kind][0] + text + BRACKETS[kind][1] if kind else text


def paint_html(text: str, kind: int) -> str:
    """The text as HTML, in a colored <mark>."""
    escaped = html.escape(text)
    return f'<mark class="k{kind}" title="{html.escape(KINDS[kind])}">{escaped}</mark>' if kind else escaped


def page(title: str, figures: dict[str, float], rows: list[str]) -> str:
    """The HTML page with statistics, a legend, the picture masks.png and rows of text.

    Args:
      title: of the page.
      figures: description → value.
      rows: HTML of each row.
    """
    colors = ''.join(f'.k{kind}{{background:{color}}}' for kind, (_, color) in COLORS.items())
    legend = ' '.join(paint_html(KINDS[kind], kind) for kind in COLORS)
    cells = ''.join(f'<tr><td>{html.escape(k)}<td>{_number(v)}' for k, v in figures.items())
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}{colors}</style>'
        f'<h1>{html.escape(title)}</h1><table>{cells}</table><p>{legend}</p>'
        '<p><img src="masks.png" alt="ratios, runs and positions" style="width:100%"></p>'
        + ''.join(f'<p>{row}</p>' for row in rows)
        + '\n'
    )


def _number(value: float) -> str:
    return f'{value:,}' if isinstance(value, int) else f'{value:.4f}'


def describe(config: ml_collections.ConfigDict) -> str:
    """The masking of a configuration in one line: the keys that differ from the defaults."""
    default = config_lib.values(config_lib.default_config().masking)
    changed = {key: value for key, value in config_lib.values(config.masking).items() if value != default[key]}
    return ', '.join(f'{key}={value}' for key, value in changed.items()) or 'the default masking'


def main() -> None:
    """Prints rows and statistics, and writes the page if there is an output directory."""
    values, config = flags.FLAGS, command_line.configuration()
    masking_in_words = describe(config)
    config, data = prepared_data.resolve(config)
    tokenizer = Tokenizer.from_file(data.tokenizer)
    word_starts, word_marks = masking_tables.of_words(tokenizer, data.vocabulary.size)
    in_color = values.colour == 'always' or (values.colour == 'auto' and sys.stdout.isatty())
    paint = paint_terminal if in_color else paint_plain

    statistics = MaskStatistics.zeros(config.masking.repeats * config.sequence_length)
    pages: list[str] = []
    batches: list[MaskedBatch] = []
    print(masking_in_words, '\n')
    print('  '.join(paint(KINDS[kind], kind) for kind in COLORS), '\n')
    for batch, overflow_B in masked_batches(config, data, values.step, values.texts):
        statistics.add(batch, overflow_B, word_starts, data.vocabulary, word_marks)
        batches.append(batch)
        kinds_BxT = kinds(batch, data.vocabulary)
        for row in range(min(len(kinds_BxT), values.rows - len(pages))):
            tokens_T, inputs_T = np.asarray(batch.tokens[row]), np.asarray(batch.inputs[row])
            print(text_of(tokenizer, tokens_T, inputs_T, kinds_BxT[row], paint).strip(), '\n')
            pages.append(text_of(tokenizer, tokens_T, inputs_T, kinds_BxT[row], paint_html))
    masking = _run(config, data).masking
    ratio = mask_ratio.of_batches(masking, batches, values.step)
    figures = statistics.summary() | {'asked share of the tokens to predict': ratio.asked}
    for name, value in figures.items():
        print(f'{_number(value):>12}  {name}')
    if ratio.is_missed:
        print(f'\n{mask_ratio.describe(ratio, masking)}')
    if values.output:
        directory = buckets.path(values.output).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        statistics.draw(directory / 'masks.png', masking_in_words)
        atomic.write_bytes(directory / 'masks.html', page(masking_in_words, figures, pages).encode())
        atomic.write_bytes(directory / 'statistics.json', f'{json.dumps(figures, indent=2)}\n'.encode())
        print(f'\nwritten: {directory / "masks.html"}')


if __name__ == '__main__':
    command_line.define_config_flags()
    flags.DEFINE_integer('rows', 6, 'Rows to show.', lower_bound=0)
    flags.DEFINE_integer('texts', 1024, 'Texts to count, rounded up to whole batches.', lower_bound=1)
    flags.DEFINE_integer('step', 0, 'The step of the training run to start at.', lower_bound=0)
    paths.define_flag('output', None, 'Directory for masks.html, masks.png and statistics.json.', 'directory')
    flags.DEFINE_enum('colour', 'auto', ['auto', 'always', 'never'], 'Whether to print in color.')
    command_line.run(main, required=('config',))
