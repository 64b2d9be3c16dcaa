"""Program: prepares data for training: reads a corpus, trains a tokenizer, and writes packed rows to disk.

    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mine,data.corpus='text:corpus/*.txt'
    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/logs,data.corpus='jsonl:logs/*.jsonl'

`mlm_jax/data/corpora.py` explains how to specify a corpus; without `data.corpus`, it is `demo`, English text from the
Python installation. A run that was killed can be started again and resumes; the resulting directory is always the same
to the byte, on any number of cores and machines. For a finished directory, the program compares every file with its
checksum, and makes damaged and missing files again.

Many machines that share a file system can divide the work: N processes get `--task=0 --of=N` … `--task=N-1 --of=N`, in
any order and at any time, and when they have ended, a last call without `--task` does what is missing and finishes the
directory. With --beam, a cluster of Apache Beam (Dataflow, Flink, Spark) does it; the options of its runner stand
behind a lone --. A directory holds

    manifest.json                     describes the directory; written last
    tokenizer.model                   a SentencePiece model, a SMILES vocabulary, or the given tokenizer.json
    tables.npz                        tables for masking: word starts, counts, and collocations for masking.unit=pmi
    train-00000-of-00012.npy, …       packed rows, uint16 or uint32 [rows, T]
    validation-00000-of-00001.npy
    .prepare/                         temporary files; exists only until the preparation is finished
    .prepare.lock                     keeps a second `prepare` away; removed in the end, but not by tasks

The corpus and the directory may lie in buckets (gs://, s3://: extras `gcs`, `s3`).
"""

import os

if __name__ == '__main__':  # before NumPy starts a thread for each core, which nothing here needs (`data/workers.py`)
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import contextlib
import dataclasses
import errno
import pathlib
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Iterator

import ml_collections
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.config import command_line, mixture
from mlm_jax.data import (
    beam,
    claim,
    corpora,
    encoding,
    hub_sets,
    masking_tables,
    molecules,
    sources,
    tokenizer_making,
    tokenizers,
    totals,
    verification,
    workers,
)  # fmt: skip
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import atomic, buckets, hub
from mlm_jax.files.errors import TransientError

_INTERRUPTED = 130  # by convention, the exit status of a program that was interrupted by Ctrl-C


@dataclasses.dataclass(frozen=True)
class Task:
    """One of `count` equal processes that divide the work."""

    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where and by whom a directory is prepared.

    Attributes:
      directory: the directory of the rows.
      engine: what does the work.
      task: the share of the work that is done, if it is not all.
    """

    directory: pathlib.Path
    engine: workers.Engine
    task: Task | None

    @property
    def working(self) -> pathlib.Path:
        """The directory of temporary files."""
        return self.directory / claim.WORKING_DIRECTORY

    @property
    def scratch(self) -> pathlib.Path:
        """The part of it that only this program uses."""
        return self.working / f'task-{self.task.index}-of-{self.task.count}' if self.task else self.working

    @property
    def tokenizer(self) -> pathlib.Path:
        return self.directory / tokenizer_making.FILE


def main(beam_options: list[str]) -> None:
    """Prepares the data, and prints the command that trains on it."""
    with ending_at_interrupts():
        config = command_line.configuration()
        task, engine = _task(), _engine(beam_options)
        manifest = run(config, task=task, engine=engine)
    given = [f'--config={name}' for name in flags.FLAGS.config] + [f'--set={setting}' for setting in flags.FLAGS.set]
    arguments = ' '.join(map(shlex.quote, given))
    if task and not manifest:
        print(f'\nWhen all {task.count} tasks have ended:\n    python -m mlm_jax.prepare {arguments}')
        return
    if buckets.is_bucket(config.data.directory) and not config.data.block_kib:
        arguments += ' --set=data.block_kib=256'  # `prepared_data.resolve` says why
    workdir = f'runs/{pathlib.Path(config.data.directory).name}'
    print(f'\nNext:\n    python -m mlm_jax.train {arguments} --workdir={workdir}')


def _task() -> Task | None:
    index, count = flags.FLAGS.task, flags.FLAGS.of
    if index is None and count is None:
        return None
    if index is None or count is None or not index < count:
        raise config_lib.ConfigError(
            f'--task={index} --of={count}: give both, --task=I --of=N with I from 0 to N − 1, to each of N processes'
        )
    return Task(index, count)


def _engine(beam_options: list[str]) -> workers.Engine:
    num_workers = flags.FLAGS.num_workers
    if not flags.FLAGS.beam:
        if beam_options:
            raise config_lib.ConfigError(f'-- {" ".join(beam_options)}: only --beam takes arguments behind --')
        return workers.Processes(num_workers or workers.num_cores())
    if flags.FLAGS.task is not None or num_workers:
        raise config_lib.ConfigError(
            '--beam leaves the division of the work to Apache Beam: leave out --task, --of and --num_workers. Options '
            'of a runner stand behind --, as in --beam -- --runner=DataflowRunner --num_workers=8'
        )
    return beam.Pipelines(beam_options)


@contextlib.contextmanager
def ending_at_interrupts() -> Iterator[None]:
    """Ends the program at Ctrl-C with a short message and the usual exit status instead of a traceback."""
    try:
        yield
        return
    except KeyboardInterrupt:
        pass
    # Outside of the `except` block, because the exception keeps progress bars open.
    print('\ninterrupted; the same command resumes from here', file=sys.stderr, flush=True)
    if any(thread.name == tokenizer_making.THREAD for thread in threading.enumerate()):
        os._exit(_INTERRUPTED)  # SentencePiece is running, which cannot be stopped in any other way
    sys.exit(_INTERRUPTED)


def run(
    config: ml_collections.ConfigDict,
    num_workers: int | None = None,
    task: Task | None = None,
    engine: workers.Engine | None = None,
) -> manifest_lib.Manifest | None:
    """Prepares `config.data.directory`, or verifies and repairs it if it is finished.

    Args:
      config: the configuration. The keys `data.*`, `tokenizer.*`, `vocab_size` and `sequence_length` determine the
        rows, and `masking.*` determines the tables.
      num_workers: the number of processes; None means one per core. The result does not depend on it.
      engine: what does the work, in place of processes on this machine.
      task: if given, only this task's share of the work is done, and the directory is neither finished nor verified.

    Returns:
      The manifest of the directory; None if a task has left it unfinished.

    Raises:
      ConfigError: if the corpus or a setting cannot be used, or the directory was prepared with other settings.
      ImportError: for `data.smiles_copies` without the extra `smiles`.
    """
    config_lib.check(config)
    if config.data.smiles_copies:
        molecules.parse('C')  # fails here if RDKit is missing, before the tokenizer is trained
    alone = mixture.single(config.data.directory, 'prepare writes one at a time: name one of them')
    directory = buckets.path(alone).expanduser()
    engine = engine or workers.Processes(num_workers or workers.num_cores())
    place = _Place(directory, engine, task)
    config = _pinned(config, directory)
    files = corpora.files_of(config.data, print)
    specs = {key: config.data[key] for key in ('corpus', 'validation_corpus') if config.data[key]}
    described = {spec: sources.describe(spec, files.get(key, ())) for key, spec in specs.items()}
    intent = {'settings': claim.settings(config), 'sources': described}
    with _explained_errors(directory, intent['sources']):
        if not claim.known_settings(directory):
            tokenizer_making.refuse_unread(config.tokenizer)
            corpora.refuse_unread(config.data)
        directory.mkdir(parents=True, exist_ok=True)
        with claim.locked(directory, shared=task is not None) as is_locked, _unless_finished_by_another(directory):
            if task:
                return _do_task(config, place, intent, task)
            if is_locked:
                atomic.remove_leftovers(directory)
            if (directory / manifest_lib.FILE).exists():
                return _bring_up_to_date(config, place, intent)
            return _prepare(config, place, intent)


def _pinned(config: ml_collections.ConfigDict, directory: pathlib.Path) -> ml_collections.ConfigDict:
    """The configuration with a commit in the names of data sets of the hub: that of the directory, if it has one."""
    roles = {'corpus': 'train' if config.data.validation_corpus else None, 'validation_corpus': 'validation'}
    kinds = {key: config.data[key] and corpora.parse(config.data[key])[0] for key in roles}
    if 'hf' not in kinds.values():
        return config
    config, stored = config.copy_and_resolve_references(), claim.known_settings(directory)
    for key, split in roles.items():
        if kinds[key] == 'hf':
            known = stored.get(f'data.{key}', '')
            pinned = known.removeprefix(hub.PREFIX) if known.startswith(hub.PREFIX) else ''
            config.data[key] = hub.PREFIX + hub_sets.pin(corpora.parse(config.data[key])[1], pinned, split)
    return config


def _prepare(config: ml_collections.ConfigDict, place: _Place, intent: dict) -> manifest_lib.Manifest:
    """Makes tokenizer and rows, each of which reuses finished work of earlier runs and tasks, and then the manifest."""
    claim.claim(place.directory, place.working, intent)
    corpus = _begin(config, place)
    jobs = _slice_jobs(config, corpus, place)
    with _discarding(config, place):
        place.engine.run(jobs, 'rows')
    texts = totals.of_texts(jobs)
    corpora.check_division(texts.read.total(), texts.read['validation'], corpus)
    tokenizer = tokenizers.Tokenizer.from_file(place.tokenizer)
    count = encoding.num_held_out_shards(texts.counts['validation']['bytes'])
    held_out_jobs = _held_out_jobs(config, corpus, place, count, texts)
    place.engine.run(held_out_jobs, 'held-out', unit=' shards')
    train, counts = totals.of_split('train', texts, [job for job in jobs if job.writes_rows], tokenizer.vocabulary)
    held_out, _ = totals.of_split('validation', texts, held_out_jobs, tokenizer.vocabulary)
    splits = {'train': train, 'validation': held_out}
    manifest = totals.manifest(config, intent, tokenizer, atomic.sha256(place.tokenizer), splits, texts.checksums)
    (place.directory / masking_tables.FILE).unlink(missing_ok=True)  # left by a killed run, so it may be incomplete
    masking_tables.write_missing(config.masking, place.directory, manifest, place.working, counts)
    manifest = dataclasses.replace(manifest, tables_sha256=atomic.sha256(place.directory / masking_tables.FILE))
    manifest_lib.save(manifest, place.directory, place.working)
    buckets.remove_tree(place.working)
    print(f'prepared   {place.directory}: {manifest_lib.in_words(manifest)}')
    _print_words(config, place.directory, manifest)
    return manifest


def _begin(config: ml_collections.ConfigDict, place: _Place) -> corpora.Corpus:
    """Lists the slices of the corpus, and makes the tokenizer."""
    said = ': text of the Python installation; data.corpus names another' if config.data.corpus == 'demo' else ''
    print(f'corpus     {config.data.corpus}{said}')
    try:
        corpus = corpora.open_corpus(config.data, place.working)
        tokenizer_making.make(config, corpus, place.tokenizer, place.engine)
    except config_lib.ConfigError as error:
        if not isinstance(error, TransientError) and not place.tokenizer.exists():
            # No permanent file depends on the settings yet, so the user may change them.
            buckets.remove_tree(place.working)
        raise
    return corpus


@contextlib.contextmanager
def _discarding(config: ml_collections.ConfigDict, place: _Place) -> Iterator[None]:
    """If the corpus cannot be read with a given tokenizer, forgets the settings, so that the user may change them.

    A tokenizer that was trained here is kept: some of the corpus has been read for it.
    """
    try:
        yield
    except config_lib.ConfigError as error:
        model = config.tokenizer.model
        is_trained = model in tokenizers.TRAINED or model.startswith(tokenizers.EXTEND)
        is_lasting = not isinstance(error, TransientError)
        if is_lasting and not is_trained and not any(place.directory.glob('*.npy')):
            buckets.remove_tree(place.working)
            place.tokenizer.unlink(missing_ok=True)
        raise


# ---- Tasks ---------------------------------------------------------------------------------------------------


def _do_task(
    config: ml_collections.ConfigDict, place: _Place, intent: dict, task: Task
) -> manifest_lib.Manifest | None:
    """Does one task's share of the slices; task 0 also claims the directory and makes the tokenizer."""
    finished = place.directory / manifest_lib.FILE
    if not finished.exists():
        print(f'task       {task.index} of {task.count}')
        if task.index == 0:
            claim.claim(place.directory, place.working, intent)
            corpus = _begin(config, place)
        else:
            claim.wait_for(lambda: claim.is_claimed(place.working) or finished.exists(), 'the claim of the directory')
            claim.wait_for(lambda: tokenizer_making.is_made(place.tokenizer) or finished.exists(), 'the tokenizer')
    if finished.exists():
        manifest = manifest_lib.load(place.directory)
        claim.refuse_changes(place.directory, dataclasses.asdict(manifest), intent)
        print(f'{place.directory} is finished; the same command without --task verifies it')
        return manifest
    if task.index:
        claim.refuse_other_claim(place.working, intent)
        corpus = corpora.open_corpus(config.data, place.working)
    place.scratch.mkdir(exist_ok=True)
    atomic.remove_leftovers(place.scratch)
    place.engine.run(_slice_jobs(config, corpus, place)[task.index :: task.count], 'rows')
    return None


# ---- Jobs ----------------------------------------------------------------------------------------------------


def _output(config: ml_collections.ConfigDict, place: _Place) -> encoding.Output:
    return encoding.Output(
        str(place.directory), str(place.working), str(place.scratch), str(place.tokenizer),
        atomic.sha256(place.tokenizer), config.sequence_length, config.data.packing,
    )  # fmt: skip


def _slice_jobs(config: ml_collections.ConfigDict, corpus: corpora.Corpus, place: _Place) -> list[encoding.SliceJob]:
    """The first phase: the slices of which all is held out, which fail early if they fail, and then the others."""
    output = _output(config, place)
    train, held_out = corpus.train, corpus.held_out
    return [
        encoding.SliceJob(output, part, 'validation', index, len(held_out), corpora.ALL_HASHES, writes_rows=False)
        for index, part in enumerate(held_out)
    ] + [
        encoding.SliceJob(
            output, part, 'train', index, len(train), corpus.threshold, smiles_copies=config.data.smiles_copies
        )
        for index, part in enumerate(train)
    ]


def _held_out_jobs(
    config: ml_collections.ConfigDict, corpus: corpora.Corpus, place: _Place, count: int, texts: totals.Texts
) -> list[encoding.HeldOutJob]:
    """The second phase: one job for each of `count` shards of held-out rows; `texts` are the sums of the first."""
    output = _output(config, place)
    encoding.write_runs(output, texts.runs)
    if corpus.held_out:
        threshold, first_phase = corpora.ALL_HASHES, ('validation', len(corpus.held_out))
    else:
        threshold, first_phase = corpus.threshold, ('train', len(corpus.train))
    return [encoding.HeldOutJob(output, index, count, threshold, first_phase, texts.held_out) for index in range(count)]


# ---- Finished directories ------------------------------------------------------------------------------------


def _bring_up_to_date(config: ml_collections.ConfigDict, place: _Place, intent: dict) -> manifest_lib.Manifest:
    """Compares the files of a finished directory with their checksums, makes damaged ones again, and adds tables."""
    directory, manifest = place.directory, manifest_lib.load(place.directory)
    stored = dataclasses.asdict(manifest)
    claim.refuse_changes(directory, stored, intent)
    claim.refuse(directory, sources.content_changes(claim.files_of(stored)))
    findings = verification.examine(directory, manifest, content=True)
    if manifest.tokenizer not in findings.wrong:
        tokenizer_making.refuse_other(config, directory / manifest.tokenizer)
    # A run that was killed after writing the manifest, or during a repair, leaves this directory.
    buckets.remove_tree(place.working, ignore_errors=True)
    if findings.wrong:
        for name, clause in findings.wrong.items():
            print(f'damaged    {name} {clause}; it is made again')
        _repair(config, place, manifest, set(findings.wrong))
    for name in findings.surplus:
        print(f'surplus    {name} does not belong to this preparation and is not used: it may be deleted')
    if masking_tables.write_missing(config.masking, directory, manifest):
        tables_sha256 = atomic.sha256(directory / masking_tables.FILE)
        if (manifest.tables, manifest.tables_sha256) != (masking_tables.FILE, tables_sha256):
            manifest = dataclasses.replace(manifest, tables=masking_tables.FILE, tables_sha256=tables_sha256)
            manifest_lib.save(manifest, directory)
        print(f'added      {masking_tables.FILE} to {directory}')
    print(f'{directory} is up to date: {manifest_lib.in_words(manifest)}')
    _print_words(config, directory, manifest)
    return manifest


def _repair(config: ml_collections.ConfigDict, place: _Place, manifest: manifest_lib.Manifest, wrong: set[str]) -> None:
    """Makes damaged files of a finished directory again, identical to the byte; deletes a damaged file of tables.

    Raises:
      ConfigError: if the corpus, the tokenizer or the libraries now give a different result, or an earlier version of
        this program has prepared the directory.
    """
    if wrong != {manifest.tables}:
        if manifest.preparation != claim.VERSION:
            raise config_lib.ConfigError(
                f'{", ".join(sorted(wrong - {manifest.tables}))} cannot be made again: an earlier version of mlm_jax '
                f'has prepared {place.directory}, and it divided the corpus in another way. Copy the files there '
                f'again, or delete {place.directory} and run this again'
            )
        place.working.mkdir(exist_ok=True)
        corpus = corpora.open_corpus(config.data, place.working)
        if manifest.tokenizer in wrong:
            place.tokenizer.unlink(missing_ok=True)
            tokenizer_making.make(config, corpus, place.tokenizer, place.engine)
        _make_shards_again(config, corpus, place, manifest, wrong)
        findings = verification.examine(place.directory, manifest, content=True)
        still = {name: clause for name, clause in findings.wrong.items() if name != manifest.tables}
        if still:
            different = {name: (then, totals.version(name)) for name, then in manifest.versions.items()}
            changes = [f'    {name} {then} then, {now} now' for name, (then, now) in different.items() if then != now]
            raise config_lib.ConfigError(
                f'{", ".join(still)} cannot be made again as the manifest of {place.directory} describes: the corpus'
                f'{", or the versions of libraries," if not changes else ""} must have changed since then\n'
                + ''.join(f'{line}\n' for line in changes)
                + f'Delete {place.directory} and run this again'
            )
        buckets.remove_tree(place.working)
    if manifest.tables in wrong:
        (place.directory / manifest.tables).unlink(missing_ok=True)


def _make_shards_again(
    config: ml_collections.ConfigDict,
    corpus: corpora.Corpus,
    place: _Place,
    manifest: manifest_lib.Manifest,
    wrong: set[str],
) -> None:
    """Makes the shards among `wrong` again; for held-out rows, the whole corpus is read, but only those are encoded."""
    validation = [shard.file for shard in manifest.splits['validation'].shards] if corpus.has_held_out else []
    jobs = [
        dataclasses.replace(job, writes_rows=job.writes_rows and job.shard in wrong)
        for job in _slice_jobs(config, corpus, place)
        if job.shard in wrong or (wrong.intersection(validation) and job.threshold)
    ]
    place.engine.run(jobs, 'rows')
    if wrong.intersection(validation):
        held_out_jobs = _held_out_jobs(config, corpus, place, len(validation), totals.of_texts(jobs))
        place.engine.run([job for job in held_out_jobs if job.name in wrong], 'held-out', ' shards')


def _print_words(config: ml_collections.ConfigDict, directory: pathlib.Path, manifest: manifest_lib.Manifest) -> None:
    if line := masking_tables.describe_words(config.masking, directory, manifest):
        print(line)


@contextlib.contextmanager
def _unless_finished_by_another(directory: pathlib.Path) -> Iterator[None]:
    """Says so if files are gone because another `prepare`, which no lock kept away, has finished the directory."""
    finished = directory / manifest_lib.FILE
    was_finished = finished.exists()
    try:
        yield
    except (FileNotFoundError, TransientError) as error:  # the latter of pipelines, which miss the files elsewhere
        if was_finished or not finished.exists():
            raise
        raise config_lib.ConfigError(
            f'another prepare has finished {directory} in the meantime: the same command verifies it'
        ) from error


@contextlib.contextmanager
def _explained_errors(directory: pathlib.Path, sources: dict) -> Iterator[None]:
    """Converts system errors about a full or write-protected disk to messages that say what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, 'errno', None)
        # Errors of libraries in C++ can only be recognized by their text.
        if number in (errno.ENOSPC, errno.EDQUOT) or re.search('No space left|quota exceeded', str(error)):
            if buckets.is_bucket(directory):
                raise config_lib.ConfigError(
                    f'the disk of {tempfile.gettempdir()} is full, where each worker collects the file that it writes '
                    'to the bucket: free some space, or name a directory of another disk in TMPDIR, and run the same '
                    'command, which resumes from here'
                ) from error
            text = sum(state['bytes'] for files in sources.values() for state in files.values())
            need = f' ({text / 1e6:,.0f} MB in its files, and more if they are compressed)' if text else ''
            raise config_lib.ConfigError(
                f'the disk of {directory} is full. The rows need about half as much space as the text of the '
                f'corpus{need}, and a few per cent more are needed temporarily. Free some space and run the same '
                'command, which resumes from here; or set data.directory to another disk'
            ) from error
        if not isinstance(error, OSError) or error.errno is None or isinstance(error, FileNotFoundError):
            raise
        raise config_lib.ConfigError(f'cannot use {directory}: {error.strerror} ({error.filename})') from error


if __name__ == '__main__':
    command_line.define_config_flags()
    flags.DEFINE_integer(
        'num_workers', None, 'The number of processes that encode; by default, one per core.', lower_bound=1
    )
    flags.DEFINE_integer(
        'task',
        None,
        'Do only the share of process I of --of=N equal processes, I from 0. Start N of them, on machines '
        'that share data.directory and the corpus, and in the end the same command without --task.',
        lower_bound=0,
    )
    flags.DEFINE_integer('of', None, 'The number N of processes that divide the work; see --task.', lower_bound=1)
    flags.DEFINE_boolean(
        'beam',
        False,
        'Do the work as pipelines of Apache Beam (extra `beam`). All that stands behind a lone -- is for Beam and goes '
        'to it unchanged: --beam -- --runner=FlinkRunner --flink_master=HOST:PORT; by default, Beam runs here.',
    )
    command_line.run(main, required=('config',), takes_rest=True)
