"""A picture of one row's states with their posterior, from what `analysis/alignment.py` returns.

The row is cut into lines of a few expanded tokens: above, the text with those tokens in brackets; below, a column of
states for each of them. All coordinates are inches, y downwards.
"""

import itertools
import pathlib
import warnings
from collections.abc import Sequence

MOST_COLUMNS = 8
WIDTH, MARGIN = 15.0, 0.9
RADIUS, PITCH = 0.14, 0.62  # of the circles, and from one to that below it
RISE = 0.28  # of a curve that passes columns: above their circles
TEXT_SIZE, TEXT_LINE = 10, 0.21  # points, and inches from line to line
CHARACTER = TEXT_SIZE / 72 * 0.602  # the width of one in DejaVu Sans Mono
HEADER, TITLE = 0.75, 1.0
ACCENT, STEP = '#c8102e', '#2f5b93'
VISIBLE = 0.02  # occupancy below which a state is pale
SUPERSCRIPTS = str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹')


def draw(row: dict, title: str, path: pathlib.Path) -> None:
    """Writes the picture.

    States are circles, filled by the posterior that the alignment passes them, with their own best prediction below:
    green where that is the token they are copies of. Transitions are as wide and dark as expected numbers of steps. Red
    is the most likely alignment; where it lets a state emit another token than its own, that is written beside it.

    Args:
      row: of `align_row`.
      title: shown on top.
      path: of the PNG file.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state and no display

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
        warnings.filterwarnings('ignore', message='Glyph')  # scripts that the font lacks become boxes
        figure.savefig(path, dpi=110)


def lines_of(count: int) -> list[range]:
    """The columns of each line: about as many in each, `MOST_COLUMNS` at most."""
    number = -(-count // MOST_COLUMNS)
    bounds = [count * i // number for i in range(number + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def text_of(row: dict, line: range) -> list[tuple[str, bool]]:
    """The text from the first expanded token of a line to the next line, as pairs (piece, whether it is expanded)."""
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
    """Cuts text into lines of at most `width` characters, at spaces; words without any may stick out."""
    words = []
    for text, marked in pairs:
        if text.startswith(' ') or not words:
            words.append([])
        words[-1].append((text, marked))
    lines, used = [[]], 0
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
    """Where the states are."""

    def __init__(self, lines: list[range], tops: list[float], num_states: int):
        self._num_states, self._tops = num_states, tops
        self._line = {i: number for number, line in enumerate(lines) for i in line}
        self._x = {
            i: MARGIN + (WIDTH - 2 * MARGIN) * (n + 0.5) / len(line) for line in lines for n, i in enumerate(line)
        }

    def line(self, state: int) -> int:
        return self._line[state // self._num_states]

    def top(self, target: int) -> tuple[float, float]:
        """The middle of a column, above its first state."""
        return self._x[target], self._tops[self._line[target]] - HEADER / 2

    def column(self, state: int) -> int:
        return state // self._num_states

    def passes_columns(self, state: int, to_right: bool) -> bool:
        """Whether there are columns between a state and the margin."""
        return self._line.get(self.column(state) + (1 if to_right else -1)) == self.line(state)

    def __call__(self, state: int) -> tuple[float, float]:
        target, copy = divmod(state, self._num_states)
        return self._x[target], self._tops[self._line[target]] + (copy + 0.3) * PITCH


def _draw_text(axes, lines, top: float) -> None:
    for number, pairs in enumerate(lines):
        x, y = MARGIN, top + (number + 0.5) * TEXT_LINE
        for text, marked in pairs:
            style = dict(color=ACCENT, weight='bold') if marked else dict(color='0.25')
            axes.text(x, y, text, family='DejaVu Sans Mono', size=TEXT_SIZE, va='center', parse_math=False, **style)
            x += len(text) * CHARACTER


def _draw_transitions(axes, row: dict, place: _Places) -> None:
    for v, u, p in sorted(row['transitions'], key=lambda step: step[2]):
        style = dict(color=STEP, linewidth=0.5 + 3.5 * p, alpha=min(1.0, 0.12 + 0.8 * p), zorder=1 + min(p, 1.0))
        _draw_step(axes, place, v, u, style)
    path = [target['viterbi'] for target in row['targets']]
    for v, u in itertools.pairwise(path):
        _draw_step(axes, place, v, u, dict(color=ACCENT, linewidth=1.4, zorder=3))


def _draw_step(axes, place: _Places, v: int, u: int, style: dict) -> None:
    """A curve from v to u; between lines of the picture, one to the margin and another from it."""
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


def _draw_curve(axes, points, style: dict, rise: float = 0.0) -> None:
    """A cubic curve by its 4 points, or by its ends: level there, and raised between them."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if len(points) == 2:
        (x, y), (x_u, y_u) = points
        bend = 0.4 * (x_u - x)
        points = [(x, y), (x + bend, y - rise), (x_u - bend, y_u - rise), (x_u, y_u)]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    axes.add_patch(PathPatch(Path(points, codes), fill=False, capstyle='butt', **style))


def _draw_states(axes, row: dict, place: _Places) -> None:
    emits = {target['viterbi']: i for i, target in enumerate(row['targets'])}
    targets = row['targets']
    for i, target in enumerate(targets):
        x, y = place.top(i)
        style = dict(color='0.5') if target['anchor'] else dict(color='black', weight='bold')
        word = f'{_word(target["piece"], 16)}{_superscript(i)}'
        axes.text(x, y - 0.08, word, size=11, ha='center', va='center', parse_math=False, **style)
        note = f'{target["probability"]:.0%} from context'
        axes.text(x, y + 0.12, note, size=7, color='0.45', ha='center', va='center')
    for u, state in enumerate(row['states']):
        (x, y), piece = place(u), state['top'][0][0]
        _draw_circle(axes, x, y, state['occupancy'], u in emits)
        right = piece == targets[state['target']]['piece']
        colour = '#1a7f37' if right else '0.2'
        label = f'{_word(piece, 12)} {state["top"][0][1]:.0%}'
        box = dict(boxstyle='square,pad=0.05', facecolor='white', alpha=0.75, linewidth=0)
        pale = 0.5 if state['occupancy'] < VISIBLE and u not in emits else 1.0
        axes.text(
            x, y + 0.25, label, size=7.5, color=colour, alpha=pale, ha='center', va='center', bbox=box, zorder=6,
            parse_math=False,
        )  # fmt: skip
        if emits.get(u, state['target']) != state['target']:
            note = f'emits {_word(targets[emits[u]]["piece"], 12)}{_superscript(emits[u])}'
            axes.text(
                x + 0.2, y - 0.15, note, size=7.5, color=ACCENT, ha='left', va='center', bbox=box, zorder=7,
                parse_math=False,
            )  # fmt: skip


def _draw_circle(axes, x: float, y: float, occupancy: float, on_path: bool) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Circle

    edge = dict(edgecolor=ACCENT, linewidth=2.2) if on_path else dict(edgecolor='0.45', linewidth=0.8)
    colour = colormaps['Blues'](0.9 * min(occupancy, 1.0))
    axes.add_patch(Circle((x, y), RADIUS, facecolor=colour, zorder=5, **edge))


def _draw_key(axes, y: float) -> None:
    """What circles, lines and colours mean."""

    def write(x, text, **style):
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
    """A piece as in text; those that go on with a word begin with a dash."""
    word = piece[1:] if piece.startswith('▁') and len(piece) > 1 else f'-{piece}' if piece[0].isalnum() else piece
    return word if len(word) <= length else f'{word[: length - 1]}…'
