"""Draws recursion.png, the picture of likelihood.md: python docs/draw_recursion.py."""

import itertools
import pathlib

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

TARGETS, STATES, BLOCK = 6, 24, 8
PATH = (0, 3, 6, 12, 18, 23)  # an alignment: the state of each target
BLUE, RED, GRAY = '#4c78a8', '#d62728', '#999999'


def draw_grid(axes) -> None:
    """Targets against states, with the states that an alignment may pass, and the borders of blocks."""
    for i in range(TARGETS):
        for u in range(STATES):
            inside = i <= u <= STATES - TARGETS + i
            ends = (i == 0) <= (u == 0) and (i == TARGETS - 1) <= (u == STATES - 1)
            color = '#dbe6f3' if inside and ends else 'white'
            axes.add_patch(Rectangle((u - 0.5, i - 0.5), 1, 1, fc=color, ec='#e4e4e4'))
    for start in range(0, STATES, BLOCK):
        axes.add_patch(Rectangle((start - 0.5, -0.5), BLOCK, TARGETS, fc='none', ec='black', lw=1.2))
        axes.text(start + BLOCK / 2 - 0.5, -0.85, f'block {start // BLOCK}', ha='center', va='bottom')
    axes.set(
        xlim=(-0.7, STATES - 0.3), ylim=(TARGETS - 0.3, -1.7), xticks=range(0, STATES, 4), yticks=range(TARGETS),
        xlabel='state u', ylabel='target i',
    )  # fmt: skip
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def arrow(axes, start, end, color, **options) -> None:
    """An arrow from (u, i) to (u, i)."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=9, color=color, **options))


def draw_alignments(axes) -> None:
    """Which states are summed, one alignment, and the scales."""
    draw_grid(axes)
    places = [(u, i) for i, u in enumerate(PATH)]
    for start, end in itertools.pairwise(places):
        arrow(axes, start, end, RED, shrinkA=3, shrinkB=3)
    axes.plot(*np.transpose(places), 'o', color=RED, ms=6)
    for i in range(TARGETS):
        for block in range(STATES // BLOCK):
            axes.text(block * BLOCK + BLOCK - 0.7, i + 0.42, f'$2^{{s_{{{i},{block}}}}}$', fontsize=8, ha='right')
    axes.set_title(
        'One alignment (red) of those that are summed (through blue cells).\n'
        'Each block and target has its own scale, a power of two',
        fontsize=10,
    )


def draw_flow(axes) -> None:
    """What flows into a target and state."""
    draw_grid(axes)
    u, i = 13, 3
    for v in range(i - 1, BLOCK):
        arrow(axes, (v, i - 1), (u, i), GRAY, lw=0.8, shrinkB=5)
    for v in range(BLOCK, u):
        arrow(axes, (v, i - 1), (u, i), BLUE, lw=1.2, shrinkB=5)
    axes.plot([u], [i], 'o', color='black', ms=6)
    axes.text(u + 0.8, i + 0.15, '$\\alpha_i(u)$', va='center', fontsize=11)
    text = 'from earlier blocks,\nall targets at once:\none matrix product'
    axes.text(-0.2, 4.3, text, color='#666666', fontsize=9, va='center')
    axes.text(u + 2.7, i - 1.0, 'from the same block:\nrecursion over targets', color=BLUE, fontsize=9, va='center')
    axes.set_title(
        'What flows into target i = 3 and state u = 13:\n'
        '$\\alpha_i(u) = e^{match[i,u]} \\sum_v \\alpha_{i-1}(v)\\, e^{links[v,u]}$',
        fontsize=10,
    )


if __name__ == '__main__':
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4))
    draw_alignments(left)
    draw_flow(right)
    figure.tight_layout()
    figure.savefig(pathlib.Path(__file__).with_name('recursion.png'), dpi=110)
