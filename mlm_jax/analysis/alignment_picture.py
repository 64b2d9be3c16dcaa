"""A picture of the states of one row with their posterior, from what `analysis/alignment.py` returns.

The picture consists of lines with a few expanded tokens each. At the top of a line is its text, with the masked tokens
in brackets; below the text, each expanded token has a column of states. All coordinates are in inches, and y increases
downwards.
"""

import itertools
import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlm_jax.files import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COLUMNS = 8  # in a line
WIDTH, MARGIN = 15.0, 0.9
RADIUS, PITCH = 0.14, 0.62  # radius of the circles, and distance between two circles of a column
RISE = 0.28  # how far a curve rises where it passes above the circles of other columns
TEXT_SIZE, TEXT_LINE = 10, 0.21  # size of the font in points, and distance between two lines of text in inches
CHARACTER = TEXT_SIZE / 72 * 0.602  # width of a character in DejaVu Sans Mono
HEADER, TITLE = 0.75, 1.0  # heights: of the names above the columns, and of the title with the key
ACCENT, STEP = '#c8102e', '#2f5b93'
VISIBLE = 0.02  # a state with a smaller occupancy is pale
SUPERSCRIPTS = str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹')


def draw(row: dict, title: str, path: pathlib.Path) -> None:
    """Writes the picture.

    Each state is a circle, the darker the larger the posterior probability that it emits a token. Below the circle is
    the state's best prediction, in green where it is the token that the state is a copy of. A transition is the wider
    and darker the larger its expected number of steps. The most likely alignment is red; where it makes a state emit a
    token that the state is not a copy of, that token is written beside the circle.

    Args:
      row: what `align_row` returns.
      title: shown at the top.
      path: of the PNG file.
    """
    from matplotlib.figure import Figure  # without pyplot, which keeps global state and may open a display

    lines = lines_of(len(row['targets']))
    num_states = len(row['states']) // len(row['targets'])
    texts = [wrap(text_of(row, line), int((WIDTH - 2 * MARGIN) / CHARACTER)) for line in lines]
    heights = [len(text) * TEXT_LINE + HEADER + num_states * PITCH + 0.3 for text in texts]
    height = TITLE + sum(heights)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(MARGIN, 0.3, title, size=13, weight='bold', va='center', parse_math=False)
    _draw_key(axes, 0.68)

    top, tops = TITLE, []
    for text, panel_height in zip(texts, heights, strict=True):
        _draw_text(axes, text, top)
        tops.append(top + len(text) * TEXT_LINE + HEADER)
        top += panel_height
    place = _Places(lines, tops, num_states)
    _draw_transitions(axes, row, place)
    _draw_states(axes, row, place)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph')  # a character that the font lacks becomes a box
        pictures.save(figure, path, dots_per_inch=110)


def lines_of(count: int) -> list[range]:
    """The columns of each line: at most `MOST_COLUMNS`, and nearly the same number in all lines."""
    number = -(-count // MOST_COLUMNS)
    bounds = [count * i // number for i in range(number + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def text_of(row: dict, line: range) -> list[tuple[str, bool]]:
    """The text from the first expanded token of a line to that of the next line: pairs (piece, is it expanded?)."""
    targets = row['targets']
    first = targets[line.start]['position'] if line.start else 0
    last = targets[line.stop]['position'] if line.stop < len(targets) else len(row['pieces'])
    numbers = {targets[i]['position']: i for i in line}
    pairs = []
    for position in range(first, last):
        piece = row['pieces'][position].replace('▁', ' ')
        if position not in numbers:
            pairs.append((piece, False))
            continue
        word = piece.strip() if targets[numbers[position]]['anchor'] else f'[{piece.strip()}]'
        space = ' ' * piece.startswith(' ')
        pairs.append((f'{space}{word}{_superscript(numbers[position])}', True))
    return pairs


def wrap(pairs: Sequence[tuple[str, bool]], width: int) -> list[list[tuple[str, bool]]]:
    """Breaks text at spaces into lines of at most `width` characters; only a single longer word exceeds that."""
    words: list[list[tuple[str, bool]]] = []
    for text, marked in pairs:
        if text.startswith(' ') or not words:
            words.append([])
        words[-1].append((text, marked))
    lines: list[list[tuple[str, bool]]] = [[]]
    used = 0
    for word in words:
        length = sum(len(text) for text, _ in word)
        if lines[-1] and used + length > width:
            lines.append([])
            used = 0
        if not lines[-1]:
            word = [(word[0][0].lstrip(), word[0][1]), *word[1:]]
        lines[-1] += word
        used += length
    return lines


def _superscript(index: int) -> str:
    return str(index + 1).translate(SUPERSCRIPTS)


class _Places:
    """The coordinates of the states."""

    def __init__(self, lines: list[range], tops: list[float], num_states: int):
        self._num_states, self._tops = num_states, tops
        self._line = {i: number for number, line in enumerate(lines) for i in line}
        self._x = {
            i: MARGIN + (WIDTH - 2 * MARGIN) * (n + 0.5) / len(line) for line in lines for n, i in enumerate(line)
        }

    def line(self, state: int) -> int:
        return self._line[state // self._num_states]

    def top(self, target: int) -> tuple[float, float]:
        """The center of a column, above its first state."""
        return self._x[target], self._tops[self._line[target]] - HEADER / 2

    def column(self, state: int) -> int:
        return state // self._num_states

    def passes_columns(self, state: int, to_right: bool) -> bool:
        """Whether there are other columns between a state and the right or the left margin."""
        return self._line.get(self.column(state) + (1 if to_right else -1)) == self.line(state)

    def __call__(self, state: int) -> tuple[float, float]:
        target, copy = divmod(state, self._num_states)
        return self._x[target], self._tops[self._line[target]] + (copy + 0.3) * PITCH


def _draw_text(axes: 'Axes', lines: Sequence[Sequence[tuple[str, bool]]], top: float) -> None:
    for number, pairs in enumerate(lines):
        x, y = MARGIN, top + (number + 0.5) * TEXT_LINE
        for text, marked in pairs:
            style: dict[str, Any] = dict(color=ACCENT, weight='bold') if marked else dict(color='0.25')
            axes.text(x, y, text, family='DejaVu Sans Mono', size=TEXT_SIZE, va='center', parse_math=False, **style)
            x += len(text) * CHARACTER


def _draw_transitions(axes: 'Axes', row: dict, place: _Places) -> None:
    for v, u, p in sorted(row['transitions'], key=lambda step: step[2]):
        style = dict(color=STEP, linewidth=0.5 + 3.5 * p, alpha=min(1.0, 0.12 + 0.8 * p), zorder=1 + min(p, 1.0))
        _draw_step(axes, place, v, u, style)
    path = [target['viterbi'] for target in row['targets']]
    for v, u in itertools.pairwise(path):
        _draw_step(axes, place, v, u, dict(color=ACCENT, linewidth=1.4, zorder=3))


def _draw_step(axes: 'Axes', place: _Places, v: int, u: int, style: dict) -> None:
    """A curve from state v to state u; to another line, one curve to the right margin and one from the left margin."""
    (x, y), (x_u, y_u) = place(v), place(u)
    if place.line(v) != place.line(u):
        right, left = (x + RADIUS, y), (x_u - RADIUS, y_u)
        _draw_curve(axes, [right, (WIDTH - MARGIN / 2, y)], style, RISE * place.passes_columns(v, to_right=True))
        _draw_curve(axes, [(MARGIN / 2, y_u), left], style, RISE * place.passes_columns(u, to_right=False))
    elif place.column(v) == place.column(u):
        bulge = 0.42 + 0.12 * (u - v)
        _draw_curve(axes, [(x + RADIUS, y), (x + bulge, y), (x + bulge, y_u), (x + RADIUS, y_u)], style)
    else:
        _draw_curve(axes, [(x + RADIUS, y), (x_u - RADIUS, y_u)], style, RISE * (place.column(u) > place.column(v) + 1))


def _draw_curve(axes: 'Axes', points: Sequence[tuple[float, float]], style: dict, rise: float = 0.0) -> None:
    """A cubic Bézier curve with 4 control points; 2 points are its ends, where it starts and ends horizontally."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if len(points) == 2:
        (x, y), (x_u, y_u) = points
        bend = 0.4 * (x_u - x)
        points = [(x, y), (x + bend, y - rise), (x_u - bend, y_u - rise), (x_u, y_u)]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    axes.add_patch(PathPatch(Path(points, codes), fill=False, capstyle='butt', **style))


def _draw_states(axes: 'Axes', row: dict, place: _Places) -> None:
    emits = {target['viterbi']: i for i, target in enumerate(row['targets'])}
    targets = row['targets']
    for i, target in enumerate(targets):
        x, y = place.top(i)
        style: dict[str, Any] = dict(color='0.5') if target['anchor'] else dict(color='black', weight='bold')
        word = f'{_word(target["piece"], 16)}{_superscript(i)}'
        axes.text(x, y - 0.08, word, size=11, ha='center', va='center', parse_math=False, **style)
        note = f'{target["probability"]:.0%} from context'
        axes.text(x, y + 0.12, note, size=7, color='0.45', ha='center', va='center')
    for u, state in enumerate(row['states']):
        (x, y), piece = place(u), state['top'][0][0]
        _draw_circle(axes, x, y, state['occupancy'], u in emits)
        right = piece == targets[state['target']]['piece']
        color = '#1a7f37' if right else '0.2'
        label = f'{_word(piece, 12)} {state["top"][0][1]:.0%}'
        box = dict(boxstyle='square,pad=0.05', facecolor='white', alpha=0.75, linewidth=0)
        pale = 0.5 if state['occupancy'] < VISIBLE and u not in emits else 1.0
        axes.text(
            x, y + 0.25, label, size=7.5, color=color, alpha=pale, ha='center', va='center', bbox=box, zorder=6,
            parse_math=False,
        )  # fmt: skip
        if emits.get(u, state['target']) != state['target']:
            note = f'emits {_word(targets[emits[u]]["piece"], 12)}{_superscript(emits[u])}'
            axes.text(
                x + 0.2, y - 0.15, note, size=7.5, color=ACCENT, ha='left', va='center', bbox=box, zorder=7,
                parse_math=False,
            )  # fmt: skip


def _draw_circle(axes: 'Axes', x: float, y: float, occupancy: float, on_path: bool) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Circle

    edge: dict[str, Any] = dict(edgecolor=ACCENT, linewidth=2.2) if on_path else dict(edgecolor='0.45', linewidth=0.8)
    color = colormaps['Blues'](0.9 * min(occupancy, 1.0))
    axes.add_patch(Circle((x, y), RADIUS, facecolor=color, zorder=5, **edge))


def _draw_key(axes: 'Axes', y: float) -> None:
    """The key: what circles, lines and colors mean."""

    def write(x: float, text: str, **style: Any) -> None:
        axes.text(x, y, text, size=8.5, va='center', **{'color': '0.25', **style})

    write(MARGIN, 'state, by the probability that it emits a token:')
    for n, occupancy in enumerate((0.0, 0.5, 1.0)):
        _draw_circle(axes, MARGIN + 3.0 + 0.62 * n, y, occupancy, False)
        write(MARGIN + 3.18 + 0.62 * n, f'{occupancy:g}')
    write(MARGIN + 5.1, 'step from state to state:')
    for n, p in enumerate((0.1, 0.5, 1.0)):
        x = MARGIN + 6.65 + 0.85 * n
        axes.plot([x, x + 0.4], [y, y], color=STEP, linewidth=0.5 + 3.5 * p, alpha=min(1.0, 0.12 + 0.8 * p))
        write(x + 0.46, f'{p:g}')
    _draw_circle(axes, MARGIN + 9.5, y, 0.0, True)
    write(MARGIN + 9.72, 'most likely alignment', color=ACCENT)
    write(MARGIN + 11.4, 'best guess is its own token', color='#1a7f37')


def _word(piece: str, length: int) -> str:
    """A piece as it is in a text; a piece that continues a word gets a dash before it."""
    word = piece[1:] if piece.startswith('▁') and len(piece) > 1 else f'-{piece}' if piece[0].isalnum() else piece
    return word if len(word) <= length else f'{word[: length - 1]}…'
