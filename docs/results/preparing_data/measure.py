"""Times `prepare`, and the encoding of a slice beside SentencePiece; and computes from that what a terabyte takes.

    python docs/results/preparing_data/measure.py --corpus='wiki*.jsonl' --work=runs/preparing_data --former=CHECKOUT

`--former` names a checkout of another version, which is timed in turn with this one. All is timed from the first byte
of the corpus to the manifest, with a tokenizer that is trained before. Times of processors are given, too, because they
depend less on what else the machine does; ratios are medians of those within rounds.
Then: python docs/results/make.py
"""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.comparing import experiment, measured
from mlm_jax.comparing.experiment import Column, Row, Table
from mlm_jax.config import command_line
from mlm_jax.data import encoding, reading, slices, tokenizers
from mlm_jax.files import atomic, paths, text_files

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
VOCABULARY, LENGTH, TRAINING_MEGABYTES = 8192, 128, 5
ALONE = "SentencePiece's encode alone"
CORES, MACHINES = 16, (1, 8, 64)  # for which the time of a terabyte is computed


def main() -> None:
    """Measures, and writes the tables `time`, `sentencepiece` and `terabyte`."""
    values = flags.FLAGS
    work = pathlib.Path(values.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    files = [file.resolve() for file in text_files.distinct(text_files.names(values.corpus))]
    environment = measured.of_this_process(('sentencepiece',))
    models = {kind: trained(kind, files, work) for kind in tokenizers.SENTENCEPIECE}
    times = whole_programs(files, models['unigram'], work)
    tables = (times, beside_sentencepiece(files, models, work), terabyte(times, files, work / 'rows'))
    stored = experiment.read(HERE)
    others = [table for table in stored.tables if table.name not in {table.name for table in tables}]
    experiment.write(dataclasses.replace(stored, tables=(*tables, *others), **environment), HERE)


def trained(kind: str, files: Sequence[pathlib.Path], work: pathlib.Path) -> pathlib.Path:
    """A tokenizer of 8,192 pieces, trained on the first megabytes."""
    path = work / f'{kind}.model'
    if not path.exists():
        settings = config_lib.default_config().tokenizer
        settings.update(model=kind, training_megabytes=TRAINING_MEGABYTES)
        texts = (text.decode() for text in text_files.read(files[0], 'jsonl', 'text'))
        path.write_bytes(tokenizers.train(texts, settings, VOCABULARY).model)
    return path


def whole_programs(files: Sequence[pathlib.Path], model: pathlib.Path, work: pathlib.Path) -> Table:
    """Seconds of whole programs, in turn, for one and two workers; and of as many SentencePiece encoders, side by side.

    The latter is what two cores can do at best, which is less than twice what one can if they share memory or a core.
    """
    versions = {'now': REPOSITORY} | ({'before': pathlib.Path(flags.FLAGS.former)} if flags.FLAGS.former else {})
    contestants = [(name, workers) for workers in (1, 2) for name in versions]
    contestants += [(ALONE, workers) for workers in (1, 2)]
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {each: [] for each in contestants}
    for _ in range(flags.FLAGS.rounds):
        for name, workers in contestants:
            used = (
                encoders(workers, files, model)
                if name == ALONE
                else program(versions[name], workers, files, model, work / 'rows')
            )
            seconds[name, workers].append(used)
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    rows = []
    for name, workers in contestants:
        wall, cpu = (statistics.median(column) for column in zip(*seconds[name, workers]))
        title = f'{name}, {workers} {"process" if name == ALONE else "worker"}'
        rows.append(Row(title + ('es' if name == ALONE else 's') * (workers > 1), (wall, megabytes / wall, cpu)))
    columns = (Column('time', 's', '.1f'), Column('speed', 'MB/s', '.1f'), Column('time of processors', 's', '.1f'))
    return Table(
        'time', f'From the first of {megabytes:.0f} MB to the manifest, without training.', columns, tuple(rows)
    )


def terabyte(times: Table, files: Sequence[pathlib.Path], rows: pathlib.Path) -> Table:
    """What 1 TB of text takes, computed from the seconds of processors with two workers and from the rows that remain.

    The tokenizer is given, the cores are as fast as these, and neither disk nor network holds them up: the last columns
    say how fast these have to be.
    """
    num_bytes = sum(file.stat().st_size for file in files)
    (seconds,) = (row.values[2] for row in times.rows if row.name == 'now, 2 workers')
    core_hours = 1e12 / num_bytes * seconds / 3600
    share = sum(file.stat().st_size for file in rows.glob('*.npy')) / num_bytes
    lines = []
    for machines in MACHINES:
        hours = core_hours / CORES / machines
        read = 1e6 / hours / 3600 / machines  # MB per second and machine
        lines.append(Row(f'{machines} machine{"s" * (machines > 1)}', (hours, core_hours, share, read, share * read)))
    columns = (
        Column('time', 'hours', '.3f'), Column('cores', 'core-hours', '.0f'), Column('rows on the disk', 'TB', '.2f'),
        Column('read by each machine', 'MB/s', '.0f'), Column('written by each machine', 'MB/s', '.0f'),
    )  # fmt: skip
    return Table('terabyte', f'1 TB of text on machines of {CORES} cores: computed, not run.', columns, tuple(lines))


def program(
    checkout: pathlib.Path, workers: int, files: Sequence[pathlib.Path], model: pathlib.Path, directory: pathlib.Path
) -> tuple[float, float]:
    """The seconds of one `prepare`, and those of the processors."""
    shutil.rmtree(directory, ignore_errors=True)
    settings = {
        'data.corpus': f'jsonl:{";".join(map(str, files))}', 'data.directory': directory, 'tokenizer.model': model,
        'vocab_size': VOCABULARY, 'sequence_length': LENGTH,
    }  # fmt: skip
    words = [sys.executable, '-m', 'mlm_jax.prepare', '--config=mlm:mini', f'--num_workers={workers}']
    start, before = time.perf_counter(), processors()
    subprocess.run(
        [*words, *(f'--set={key}={value}' for key, value in settings.items())],
        cwd=checkout, env={**os.environ, 'PYTHONPATH': str(checkout)}, check=True, capture_output=True,
    )  # fmt: skip
    return time.perf_counter() - start, processors() - before


def encoders(count: int, files: Sequence[pathlib.Path], model: pathlib.Path) -> tuple[float, float]:
    """The seconds in which SentencePiece's `encode`, in so many processes, encodes the texts, and those of processors.

    The texts lie in memory, and each process encodes its share by one call, as users of SentencePiece do.
    """
    context = multiprocessing.get_context('spawn')
    barrier, results = context.Barrier(count), context.Queue()
    started = [
        context.Process(target=encode_share, args=(number, count, files, model, barrier, results))
        for number in range(count)
    ]
    for process in started:
        process.start()
    starts, ends, used = zip(*(results.get() for _ in started))
    for process in started:
        process.join()
    return max(ends) - min(starts), sum(used)


def encode_share(number: int, count: int, files: Sequence[pathlib.Path], model: pathlib.Path, barrier, results) -> None:
    """In a process: encodes every `count`-th text when all are ready; tells when it began and ended, and its work."""
    texts = itertools.chain.from_iterable(text_files.read(file, 'jsonl', 'text') for file in files)
    share = list(itertools.islice(texts, number, None, count))
    encoder = tokenizers.Tokenizer.from_file(model)._processor
    barrier.wait()
    start, before = time.monotonic(), time.process_time()
    encoder.encode(share)
    results.put((start, time.monotonic(), time.process_time() - before))


def processors() -> float:
    """Seconds of processors that children have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def beside_sentencepiece(files: Sequence[pathlib.Path], models: dict[str, pathlib.Path], work: pathlib.Path) -> Table:
    """The speed of a slice, from its first byte to its rows, beside that of SentencePiece on its texts."""
    sentences = work / 'sentences.txt'
    with open(sentences, 'wb') as file:
        for text in itertools.islice(text_files.read(files[0], 'jsonl', 'text'), 1000):
            file.writelines(sentence + b'\n' for line in text.splitlines() for sentence in line.split(b'. '))
    articles = slices.divide_files('jsonl', files[:1], 'text')[0]
    short = slices.divide_files('lines', [sentences], 'text')[0]
    rows = []
    for name, part, kind, form in (
        ('unigram, as its users call it', articles, 'unigram', 'lists'),
        ('unigram, quickest form', articles, 'unigram', 'arrays'),
        ('BPE, quickest form', articles, 'bpe', 'arrays'),
        ('unigram, quickest form, documents of one sentence', short, 'unigram', 'arrays'),
    ):
        ours, theirs, num_bytes = contest(part, models[kind], work, form)
        ratios = [b / a for a, b in zip(ours, theirs)]
        rows.append(Row(name, (num_bytes / statistics.median(theirs) / 1e6, statistics.median(ratios))))
    columns = (Column("SentencePiece's speed", 'MB/s', '.1f'), Column('ratio of speeds', format='.2f'))
    return Table('sentencepiece', 'Beside SentencePiece, on one core.', columns, tuple(rows))


def contest(
    part: slices.Slice, model: pathlib.Path, work: pathlib.Path, form: str
) -> tuple[list[float], list[float], int]:
    """Seconds of the processor for a slice, here and in SentencePiece, in turn; and the size of its text."""
    place = work / 'slice'
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    output = encoding.Output(*[str(place)] * 3, str(model), atomic.sha256(model), LENGTH, 'documents')
    job = encoding.SliceJob(output, part, 'train', 0, 1, threshold=2**64 // 100)
    texts = [text for _, _, some in reading.Reading(part, 0).texts() for text in some]
    processor = output.load_tokenizer()._processor
    returned = {'return_type': 'numpy'} if form == 'arrays' else {}
    ours, theirs = [], []
    for _ in range(flags.FLAGS.rounds + 1):
        ours.append(timed(job.run))
        theirs.append(timed(lambda: processor.encode(texts, **returned)))
    return ours[1:], theirs[1:], sum(map(len, texts))


def timed(work: Callable[[], object]) -> float:
    """The seconds of the processor that it takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == '__main__':
    flags.DEFINE_string('corpus', None, 'Glob of JSON lines.')
    paths.define_flag('work', None, 'A directory for what is written.', 'directory')
    paths.define_flag('former', '', 'A checkout of another version, timed in turn.', 'directory')
    flags.DEFINE_integer('rounds', 3, 'Each contestant runs so many times.', lower_bound=1)
    command_line.run(main, required=('corpus', 'work'))
