"""Every second since the first start of a run is counted once, over all of its starts."""

import types

import pytest

from mlm_jax.training import goodput, loss_curve
from mlm_jax.training.goodput import MEANINGS, Goodput
from mlm_jax.training.metrics import MetricsWriter, read_metrics


@pytest.fixture
def time(monkeypatch):
    """A clock to be moved by hand: `time.now` is Unix time."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(goodput.time, 'monotonic', lambda: clock.now - 900.0)
    monkeypatch.setattr(goodput.time, 'time', lambda: clock.now)
    return clock


class Run:
    """Starts of a run in a workdir, each of which trains for one second a step."""

    def __init__(self, time, workdir):
        self._time, self._workdir = time, workdir

    def start(self, first_step: int, last_step: int, saved: tuple[int, ...] = (), is_complete: bool = False) -> Goodput:
        """Takes 5 s to start and 2 s to compile; logs every second step, and saves after the steps `saved`."""
        clock = Goodput(age_seconds=1.0)  # what passed before the clock
        self._time.now += 4.0
        writer = MetricsWriter(self._workdir, first_step or -1, tensorboard=False, wandb_project='', config={})
        clock.add_earlier_starts(writer.earlier, first_step)
        writer.write(first_step, clock.scalars())
        with clock.phase('compile'):
            self._time.now += 2.0
        clock.enter('train')
        for step in range(first_step + 1, last_step + 1):
            self._time.now += 1.0
            if step in saved:
                with clock.phase('checkpoint'):
                    self._time.now += 0.5
            if step in saved or step % 2 == 0:
                writer.write(step, clock.scalars())
        if is_complete:
            writer.write(last_step, clock.scalars(is_complete=True))
        writer.close()
        return clock


def test_a_run_that_is_killed_ten_times_shows_it(time, tmp_path):
    run, began, lost = Run(time, tmp_path), time.now - 1.0, 0
    for kill in range(10):
        first_step = 3 * (kill // 2)  # every second start saves a checkpoint on its way
        saved = (first_step + 3,) if kill % 2 else ()
        run.start(first_step, first_step + 5, saved)
        last_logged = (first_step + 5) // 2 * 2  # of what came after, nothing is known: it counts as interrupted
        lost += last_logged - max(first_step, *saved, 0)
        time.now += 61.0  # the process is dead; then the next one takes a second before its clock begins
    seconds = run.start(15, 20, is_complete=True).seconds()
    assert sum(seconds.values()) == pytest.approx(time.now - began)
    assert seconds['train'] == pytest.approx(20.0), 'each step counts once'
    assert seconds['start'] == pytest.approx(11 * 5.0) and seconds['compile'] == pytest.approx(11 * 2.0)
    assert seconds['checkpoint'] == pytest.approx(5 * 0.5)
    assert seconds['repeated'] == pytest.approx(lost)
    line = read_metrics(tmp_path / 'metrics.jsonl')[-1]
    assert line['goodput/share'] == pytest.approx(20.0 / (time.now - began))
    assert goodput.describe(seconds).startswith('goodput 2.7%: 20.0 s of training in 12 min 14 s; interrupted')


def test_a_run_that_is_killed_before_its_first_step_counts_its_starts(time, tmp_path):
    run = Run(time, tmp_path)
    for _ in range(3):
        run.start(0, 0)
        time.now += 9.0
    seconds = run.start(0, 2).seconds()
    # A kill during compilation is seen only by the next start, which takes it for an interruption.
    assert seconds['start'] == 20.0 and seconds['interrupted'] == 3 * (2.0 + 9.0 - 1.0)


def test_the_time_after_a_complete_run_is_no_interruption(time, tmp_path):
    run = Run(time, tmp_path)
    run.start(0, 4, saved=(4,), is_complete=True)
    time.now += 1e6
    seconds = run.start(4, 8, is_complete=True).seconds()
    assert seconds['interrupted'] == seconds['repeated'] == 0 and seconds['train'] == 8.0


def test_phases_within_phases_count_once(time):
    clock = Goodput()
    with clock.phase('evaluation'):
        time.now += 1.0
        with pytest.raises(KeyError), clock.phase('input_stall'):
            time.now += 2.0
            raise KeyError
        time.now += 4.0
    time.now += 8.0
    counted = {name: value for name, value in clock.seconds().items() if value}
    assert counted == {'evaluation': 5.0, 'input_stall': 2.0, 'start': 8.0}


@pytest.mark.parametrize('lines', [[], [{'step': 3, 'train/loss': 1.0}], [{'step': 3, 'goodput/train_seconds': 'x'}]])
def test_a_log_without_these_metrics_adds_nothing(time, lines):
    clock = Goodput()
    clock.add_earlier_starts(lines, 3)
    assert not any(clock.seconds().values())


def test_the_age_of_a_process_counts_its_imports():
    age = goodput.process_age()
    assert 0.0 <= age < 86400
    assert goodput.process_age() >= age


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0.04, '0.0 s'), (59.94, '59.9 s'), (59.96, '1 min 0 s'), (3599.6, '1 h 0 min'), (4e6, '1,111 h 6 min')],
)
def test_durations_are_readable(seconds, text):
    assert goodput.duration(seconds) == text


def test_the_picture_shows_where_the_time_went(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(loss_curve.pictures, 'save', lambda figure, path: drawn.append(figure))
    scalars = Goodput(age_seconds=2.0).scalars()
    for line in ({'train/loss': 1.0}, {'train/loss': 1.0} | scalars):
        writer = MetricsWriter(tmp_path, -1, tensorboard=False, wandb_project='', config={})
        writer.write(1, line)
        writer.close()
        loss_curve.draw_loss_curve(tmp_path)
    assert [len(figure.axes) for figure in drawn] == [1, 2]
    (entry,) = drawn[1].axes[1].get_legend().get_texts()
    assert entry.get_text() == f'{MEANINGS["start"]} 100.0 %'
