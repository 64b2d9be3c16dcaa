"""Progress: a bar on a terminal, few lines in a file."""

import io

import pytest
import tqdm

from mlm_jax.files import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_a_file_gets_a_line_every_half_minute_and_a_last_one(clock):
    file = io.StringIO()
    with progress.bar(total=1000, desc='work', file=file) as bar:
        for i in range(1000):
            clock[0] += 0.1
            bar.update()
            bar.set_description(f'part {i}')
            bar.set_postfix({'loss': 0.5})
    lines = file.getvalue().splitlines()
    assert len(lines) == 4 and '\r' not in file.getvalue()
    assert 'part 999' in lines[-1] and '1000/1000' in lines[-1] and 'loss=0.5' in lines[-1]


def test_iterating_over_a_bar_is_counted_too(clock):
    file = io.StringIO()
    assert list(progress.bar(range(5), file=file)) == list(range(5))
    assert len(file.getvalue().splitlines()) == 1 and '5/5' in file.getvalue()
    assert list(progress.bar(iter('ab'), file=file, leave=False)) == ['a', 'b']
    assert list(progress.bar('ab', file=file, disable=True)) == ['a', 'b']
    assert len(file.getvalue().splitlines()) == 1


def test_what_is_written_beside_a_bar_stays_alone(clock, capsys):
    import sys

    with progress.bar(total=10) as bar:
        bar.update(5)
        bar.write('a remark', file=sys.stderr)
    assert [line[:8] for line in capsys.readouterr().err.splitlines()] == ['a remark', ' 50%|███']


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    with progress.bar(total=3, file=terminal) as bar:
        bar.update()
    assert isinstance(bar, tqdm.tqdm) and not isinstance(bar, progress._Lines) and '\r' in terminal.getvalue()
