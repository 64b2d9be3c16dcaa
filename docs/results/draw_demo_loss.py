"""Draws demo_loss.png from demo_metrics.jsonl, the metrics of a run of configs/demo.py."""

import json
import pathlib

import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
UNIGRAM_ENTROPY = 6.521  # of the held-out text, in nats, as `prepare` printed it

if __name__ == '__main__':
    lines = [json.loads(line) for line in (HERE / 'demo_metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for name, label, style in (
        ('train/loss', 'training, mean of 50 steps', dict(color='#9ecae9', lw=1.5)),
        ('eval/loss', 'held-out text', dict(color='#1f5a99', lw=1.8, marker='o', ms=4)),
    ):
        points = [(line['step'], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), label=label, **style)
    step, loss = points[-1]
    axes.annotate(f'{loss:.2f}', (step, loss), textcoords='offset points', xytext=(0, 7), ha='center', fontsize=9)
    axes.axhline(UNIGRAM_ENTROPY, color='gray', ls='--', lw=1, label=f'word frequencies alone: {UNIGRAM_ENTROPY:.2f}')
    axes.set(xlabel='step', ylabel='loss, nats per masked token', xlim=(0, 1540), ylim=(4, 9.3))
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / 'demo_loss.png', dpi=110)
