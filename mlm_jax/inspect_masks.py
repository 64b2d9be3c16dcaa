"""Shows what a configuration masks: in colour in the terminal, as an HTML page, and as a picture.

    python -m mlm_jax.inspect_masks --config=configs/masking.py:spans
    python -m mlm_jax.inspect_masks --config=configs/masking.py:fully_explored --output=masks --step=1000

Rows and masks are, to the bit, those that training sees from that step on. Each of several masks of a text is a row.
With --output: masks.html, masks.png and statistics.json in that directory.
"""

import html
import json
import pathlib
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.analysis.mask_statistics import KINDS, MaskStatistics, kinds
from mlm_jax.config import command_line
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import masking_tables, verification
from mlm_jax.data.packing import segment_ids
from mlm_jax.data.rows import Batches
from mlm_jax.data.shards import Shards
from mlm_jax.data.tokenizers import AnyTokenizer, Tokenizer
from mlm_jax.files import atomic, paths
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.training import build, mask_ratio
from mlm_jax.training.step import MASK_STREAM, stream_key

COLOURS = {1: ('41;97', '#e57373'), 2: ('43;30', '#ffd54f'), 3: ('44;97', '#64b5f6'), 4: ('100;97', '#bdbdbd')}
_STYLE = 'body{font:16px/1.6 sans-serif;max-width:60em;margin:2em auto}mark{border-radius:3px}td{padding:0 1em}'
SIGNS = {1: '[]', 2: '{}', 3: '()', 4: '<>'}  # where there are no colours


def _run(config, manifest) -> build.Run:
    """The functions of the run."""
    steps_per_epoch = len(Shards(config.data.directory, 'train')) / config.batch_size
    return build.make_run(config, manifest.vocabulary, steps_per_epoch, masking_tables.load(config, manifest))


def masked_batches(config, manifest, first_step: int, num_texts: int) -> Iterator[tuple[MaskedBatch, np.ndarray]]:
    """The batches of a run from `first_step` on, and their overflow, int32[B·K], until `num_texts` rows are seen."""
    rows = Shards(config.data.directory, 'train')
    run = _run(config, manifest)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    batches = Batches(rows, config.seed, config.batch_size, mesh_lib.batch_sharding(mesh))

    @jax.jit
    def draw(tokens_BxT, step):
        key = stream_key(config.seed, MASK_STREAM, step)
        return run.masking.draw(key, tokens_BxT, segment_ids(tokens_BxT, manifest.vocabulary), step)

    for step in range(first_step, first_step - (-num_texts // config.batch_size)):
        yield jax.device_get(draw(batches(step), np.int32(step)))


def text_of(
    tokenizer: AnyTokenizer, tokens_T: np.ndarray, inputs_T: np.ndarray, kinds_T: np.ndarray, paint: Callable[..., str]
) -> str:
    """A row as text; chosen tokens painted by `paint(text, kind)`, with what stands there instead of them.

    Args:
      tokenizer: of the row.
      tokens_T: int[T].
      inputs_T: int[T], as the model reads them.
      kinds_T: int[T], as `analysis.mask_statistics.kinds` says.
      paint: (text, kind) → text; kind 0 is plain text.
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
    """In colour."""
    return f'\033[{COLOURS[kind][0]}m{text}\033[0m' if kind else text


def paint_plain(text: str, kind: int) -> str:
    """Between brackets."""
    return SIGNS[kind][0] + text + SIGNS[kind][1] if kind else text


def paint_html(text: str, kind: int) -> str:
    """As a coloured <mark>."""
    escaped = html.escape(text)
    return f'<mark class="k{kind}" title="{html.escape(KINDS[kind])}">{escaped}</mark>' if kind else escaped


def page(title: str, figures: dict[str, float], rows: list[str]) -> str:
    """The HTML page: figures, a legend, the picture beside it, and the rows."""
    colours = ''.join(f'.k{kind}{{background:{colour}}}' for kind, (_, colour) in COLOURS.items())
    legend = ' '.join(paint_html(KINDS[kind], kind) for kind in COLOURS)
    cells = ''.join(f'<tr><td>{html.escape(k)}<td>{_number(v)}' for k, v in figures.items())
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}{colours}</style>'
        f'<h1>{html.escape(title)}</h1><table>{cells}</table><p>{legend}</p>'
        '<p><img src="masks.png" alt="ratios, runs and positions" style="width:100%"></p>'
        + ''.join(f'<p>{row}</p>' for row in rows)
        + '\n'
    )


def _number(value: float) -> str:
    return f'{value:,}' if isinstance(value, int) else f'{value:.4f}'


def describe(config) -> str:
    """The masking of a configuration in a line."""
    default = config_lib.values(config_lib.default_config().masking)
    changed = {key: value for key, value in config_lib.values(config.masking).items() if value != default[key]}
    return ', '.join(f'{key}={value}' for key, value in changed.items()) or 'the default masking'


def main() -> None:
    """Prints rows and figures, and writes the page where asked."""
    values, config = flags.FLAGS, command_line.configuration()
    config_lib.check(config)
    masking_in_words = describe(config)
    manifest = manifest_lib.load(config.data.directory)
    config = config_lib.resolve(config, manifest)
    verification.check_tokenizer(pathlib.Path(config.data.directory).expanduser(), manifest)
    tokenizer = Tokenizer.from_file(pathlib.Path(config.data.directory).expanduser() / manifest.tokenizer)
    word_starts, word_marks = masking_tables.of_words(tokenizer, manifest.vocabulary.size)
    coloured = values.colour == 'always' or (values.colour == 'auto' and sys.stdout.isatty())
    paint = paint_terminal if coloured else paint_plain

    statistics = MaskStatistics.zeros(config.masking.repeats * config.sequence_length)
    pages: list[str] = []
    batches: list[MaskedBatch] = []
    print(masking_in_words, '\n')
    print('  '.join(paint(KINDS[kind], kind) for kind in COLOURS), '\n')
    for batch, overflow_B in masked_batches(config, manifest, values.step, values.texts):
        statistics.add(batch, overflow_B, word_starts, manifest.vocabulary, word_marks)
        batches.append(batch)
        kinds_BxT = kinds(batch, manifest.vocabulary)
        for row in range(min(len(kinds_BxT), values.rows - len(pages))):
            parts = np.asarray(batch.tokens[row]), np.asarray(batch.inputs[row]), kinds_BxT[row]
            print(text_of(tokenizer, *parts, paint).strip(), '\n')
            pages.append(text_of(tokenizer, *parts, paint_html))
    masking = _run(config, manifest).masking
    ratio = mask_ratio.of_batches(masking, batches, values.step)
    figures = statistics.summary() | {'asked share of the tokens': ratio.asked}
    for name, value in figures.items():
        print(f'{_number(value):>12}  {name}')
    if ratio.is_missed:
        print(f'\n{mask_ratio.describe(ratio, masking)}')
    if values.output:
        directory = pathlib.Path(values.output).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        statistics.draw(directory / 'masks.png', masking_in_words)
        atomic.write_bytes(directory / 'masks.html', page(masking_in_words, figures, pages).encode())
        atomic.write_bytes(directory / 'statistics.json', f'{json.dumps(figures, indent=2)}\n'.encode())
        print(f'\nwritten: {directory / "masks.html"}')


if __name__ == '__main__':
    command_line.define_config_flags()
    flags.adopt_module_key_flags(command_line)
    flags.DEFINE_integer('rows', 6, 'Rows to show.', lower_bound=0)
    flags.DEFINE_integer('texts', 1024, 'Texts to count, in whole batches.', lower_bound=1)
    flags.DEFINE_integer('step', 0, 'The step of the run to begin at.', lower_bound=0)
    paths.define_flag('output', None, 'Directory for masks.html, masks.png and statistics.json.', 'directory')
    flags.DEFINE_enum('colour', 'auto', ['auto', 'always', 'never'], 'Whether the terminal shows colours.')
    command_line.run(main, required=('config',))
