"""Preparations by Apache Beam: the bytes of `prepare`, and errors of jobs in one line."""

import contextlib
import gzip
import json
import sys
import warnings

import numpy as np
import programs
import pytest
from preparations import contents, made_up_texts, make_config

from mlm_jax import prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import beam, encoding, sampling
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files.errors import TransientError

PROCESSES = ('--direct_running_mode=multi_processing', '--direct_num_workers=2')
THREADS = ('--direct_running_mode=multi_threading', '--direct_num_workers=2')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The same documents in the files of three formats."""
    folder, rng = tmp_path_factory.mktemp('beam'), np.random.default_rng(0)
    for name in ('a', 'b', 'c'):
        texts = made_up_texts(rng, 120)
        lines = ''.join(json.dumps({'text': text}) + '\n' for text in texts).encode()
        (folder / f'{name}.jsonl.gz').write_bytes(gzip.compress(lines, mtime=0))
        (folder / f'{name}.txt').write_text('\n\n'.join(texts))
        with contextlib.suppress(ImportError):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table({'text': texts}), folder / f'{name}.parquet', row_group_size=20)
    return folder


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    """Slices of 6 kB, of which each corpus has several."""
    monkeypatch.setattr('mlm_jax.data.slices.SLICE_BYTES', 6000)


@pytest.fixture
def real_beam():
    """Apache Beam itself."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of its own code
        pytest.importorskip('apache_beam', reason='needs the extra beam')
        yield


@pytest.fixture
def in_place_of_beam(monkeypatch):
    """The steps of a pipeline in this process, in another order, and each of them twice, as a runner may do."""

    def run(jobs, working, options):
        done = [beam._do(job, working) for job in reversed(jobs)]
        again = [beam._do(job, working) for job in jobs]
        assert not any(each['bytes'] for each in again)
        middle = len(done) // 2
        beam._write_done(beam._add_up([beam._add_up(done[:middle]), beam._add_up(done[middle:])]), working)

    monkeypatch.setattr(beam, '_run_pipeline', run)
    monkeypatch.setattr(beam, '_parse', lambda options: None)


def same_as_prepare(folder, tmp_path, corpus, engine):
    prepare.run(make_config(tmp_path / 'here', corpus), num_workers=1)
    prepare.run(make_config(tmp_path / 'there', corpus), engine=engine)
    assert contents(tmp_path / 'there') == contents(tmp_path / 'here')
    assert len(list((tmp_path / 'there').glob('train-*.npy'))) > 2


@pytest.mark.parametrize('corpus', ['text:{}/*.txt', 'jsonl:{}/*.jsonl.gz', 'parquet:{}/*.parquet'])
@pytest.mark.usefixtures('real_beam')
def test_pipelines_write_the_bytes_of_prepare(folder, tmp_path, corpus):
    same_as_prepare(folder, tmp_path, corpus.format(folder), beam.Pipelines(('--runner=FnApiRunner',)))


@pytest.mark.parametrize('options', [PROCESSES, THREADS])
@pytest.mark.usefixtures('real_beam')
def test_the_bytes_do_not_depend_on_the_machines(folder, tmp_path, options):
    engine = beam.Pipelines(('--runner=FnApiRunner', *options))
    same_as_prepare(folder, tmp_path, f'jsonl:{folder}/*.jsonl.gz', engine)


@pytest.mark.usefixtures('real_beam')
def test_what_a_pipeline_cannot_do_is_said_in_a_line(folder, tmp_path, monkeypatch):
    engine, config = beam.Pipelines(('--runner=FnApiRunner',)), make_config(tmp_path / 'rows', f'text:{folder}/*.txt')

    run = encoding.SliceJob.run

    def full(job):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(encoding.SliceJob, 'run', full)
    with pytest.raises(
        ConfigError, match=r'(?s)Beam failed: OSError: \[Errno 28\] No space left.*the same command goes'
    ):
        prepare.run(config, engine=engine)
    monkeypatch.setattr(encoding.SliceJob, 'run', run)
    manifest = prepare.run(config, engine=engine)
    assert manifest == manifest_lib.load(tmp_path / 'rows')
    with pytest.raises(ConfigError, match='does not take -- --direct_num_workers=x: argument .* invalid int value'):
        beam.Pipelines(('--direct_num_workers=x',))
    with pytest.raises(ConfigError, match='Beam failed: .*runner: NoRunner'):
        prepare.run(
            make_config(tmp_path / 'other', f'text:{folder}/*.txt'), engine=beam.Pipelines(['--runner=NoRunner'])
        )


@pytest.mark.usefixtures('in_place_of_beam')
def test_jobs_in_any_order_done_twice_write_the_bytes_of_prepare(folder, tmp_path, capsys):
    same_as_prepare(folder, tmp_path, f'text:{folder}/*.txt', beam.Pipelines())
    said = capsys.readouterr().out
    assert 'rows       a pipeline of Apache Beam with' in said and 'MB/s, Apache Beam' in said


@pytest.mark.usefixtures('in_place_of_beam')
def test_a_killed_pipeline_is_resumed_and_damage_is_mended(folder, tmp_path, monkeypatch, capsys):
    config, run, begun = make_config(tmp_path / 'rows', f'text:{folder}/*.txt'), encoding.SliceJob.run, []

    def killed(job):
        begun.append(job)
        return run(job) if len(begun) < 3 else exit()

    monkeypatch.setattr(encoding.SliceJob, 'run', killed)
    with pytest.raises(SystemExit):
        prepare.run(config, engine=beam.Pipelines())
    done = begun[0]
    with done.files[done.shard].open('ab') as file:
        file.write(b'more')
    monkeypatch.setattr(encoding.SliceJob, 'run', run)
    manifest = prepare.run(config, engine=beam.Pipelines())
    assert f'damaged    {done.name} or its record: it is made again' in capsys.readouterr().out
    other = make_config(tmp_path / 'other', f'text:{folder}/*.txt')
    assert prepare.run(other, num_workers=1).fingerprint == manifest.fingerprint


@pytest.mark.usefixtures('in_place_of_beam')
def test_the_error_of_a_job_arrives_and_stops_the_others(folder, tmp_path, monkeypatch):
    content = (folder / 'b.jsonl.gz').read_bytes()
    (tmp_path / 'a.jsonl.gz').write_bytes((folder / 'a.jsonl.gz').read_bytes())
    (tmp_path / 'b.jsonl.gz').write_bytes(content[:-500])
    config = make_config(tmp_path / 'rows', f'jsonl:{tmp_path}/*.jsonl.gz')
    with pytest.raises(ConfigError, match='b.jsonl.gz is damaged or truncated: .* Copy it again'):
        prepare.run(config, engine=beam.Pipelines())
    (tmp_path / 'b.jsonl.gz').write_bytes(content)
    assert prepare.run(config, engine=beam.Pipelines()).splits['train'].rows


@pytest.mark.usefixtures('in_place_of_beam')
@pytest.mark.parametrize('error', [TransientError('no network'), RuntimeError('no machines')])
def test_samples_outlive_a_pipeline_that_fails(folder, tmp_path, monkeypatch, error):
    config, run, begun = make_config(tmp_path / 'rows', f'text:{folder}/*.txt'), sampling.Job.run, []

    def failing(job):
        begun.append(job)
        if len(begun) == 2:
            raise error
        return run(job)

    monkeypatch.setattr(sampling.Job, 'run', failing)
    with pytest.raises(TransientError, match=str(error)):
        prepare.run(config, engine=beam.Pipelines())
    assert begun[0].is_done()
    assert prepare.run(config, engine=beam.Pipelines()).splits['train'].rows


def test_machines_with_disks_of_their_own_are_noticed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(beam, '_parse', lambda options: None)
    monkeypatch.setattr(beam, '_run_pipeline', lambda jobs, working, options: None)
    with pytest.raises(ConfigError, match='left nothing in .*/rows/.prepare: .* in a bucket, or on a disk that all'):
        prepare.run(make_config(tmp_path / 'rows', f'text:{folder}/*.txt'), engine=beam.Pipelines())


def test_flags_that_make_no_sense_together(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    arguments = ['prepare', '--config=mlm:mini', f'--set=data.directory={tmp_path / "rows"}']
    for added, message in (
        (['--', '--runner=DirectRunner'], 'only --beam takes arguments behind --'),
        (['--beam', '--num_workers=2'], '--beam leaves the division of the work to Apache Beam'),
        (['--beam', '--runner=DirectRunner'], "Unknown command line flag 'runner'"),
        (['--beam', '--', '--num_workers=8'], "--beam needs the package apache-beam: pip install 'mlm_jax[beam]'"),
    ):
        ended = programs.run(*arguments, *added)
        assert ended.returncode == 1 and message in ended.stderr
    assert not (tmp_path / 'rows').exists()
