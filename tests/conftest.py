"""Eight fake CPU devices, quick compilation with a cache shared by the whole run, and prepared data to train on."""

import contextlib
import fcntl
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import types

# A shell that starts the suite in the background lets it ignore Ctrl-C, and so the programs that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('OMP_NUM_THREADS', '1')  # of PyTorch and NumPy: there is a process for each core already
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
COMPILATION_CACHE = pathlib.Path(tempfile.gettempdir()) / f'mlm_jax_test_cache_{os.getuid()}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(COMPILATION_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
# Most of the suite is compilation of programs that run for milliseconds: leave out LLVM's optimisations. The arithmetic
# is the same, in a different order of sums at most; subprocesses inherit it. 0 measures what users run.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')


def xla_takes(*flags: str) -> bool:
    """Whether XLA starts with these flags: at one that it does not know, it ends the process."""
    environment = os.environ | {'XLA_FLAGS': ' '.join(flags)}
    probe = subprocess.run([sys.executable, '-c', 'import jax; jax.devices()'], env=environment, capture_output=True)
    return probe.returncode == 0


# The older of XLA's two ways to write loops for CPUs, where it has both, compiles these programs in less than half the
# time; and a program written in one piece, not in one for each of many cores, in two thirds of that. Processes that run
# a part of the tests inherit the flags.
QUICK_COMPILATION = ('--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1')
is_first_process = 'PYTEST_XDIST_WORKER' not in os.environ
if os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] == '1' and is_first_process:
    taken = QUICK_COMPILATION if xla_takes(*QUICK_COMPILATION) else filter(xla_takes, QUICK_COMPILATION)
    os.environ['XLA_FLAGS'] += ''.join(f' {flag}' for flag in taken)

import cloud_storage  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from etils import epath  # noqa: E402
from fsspec.registry import _registry  # noqa: E402
from prepared_rows import write_prepared  # noqa: E402

from mlm_jax import config as config_lib  # noqa: E402
from mlm_jax import prepare, train  # noqa: E402
from mlm_jax.config import host_memory  # noqa: E402
from mlm_jax.files import buckets  # noqa: E402
from mlm_jax.parallel.mesh import make_mesh  # noqa: E402
from mlm_jax.pretrained import loading  # noqa: E402

REPOSITORY = pathlib.Path(__file__).parents[1]

# The suite tries the same inputs every time, so that it fails for a change and not by chance. To look for new ones:
#     pytest --hypothesis-profile=explore
hypothesis.settings.register_profile('suite', derandomize=True)
hypothesis.settings.register_profile('explore', derandomize=False)
hypothesis.settings.load_profile('suite')


def pytest_addoption(parser):
    """How many kills `test_kills.py` does, and which."""
    parser.addoption('--kills', type=int, default=2, help='kills of a training run, in tests/test_kills.py')
    parser.addoption('--kill_seed', type=int, default=0, help='of their moments, and of the damage between them')


# Where processes share the files, those that take longest come first: one that begins last is waited for by all others.
LONG_FILES = (
    'test_docs.py', 'test_train.py', 'objectives/test_exlm.py', 'training/test_step.py', 'parallel/test_tpu_compile.py',
    'masking/test_masking.py', 'objectives/test_mae_lm.py', 'pretrained/test_fairseq.py', 'pretrained/test_model.py',
    'pretrained/test_fairseq_exlm.py', 'objectives/test_registry.py', 'test_prepare.py', 'test_probe.py',
    'test_kills.py', 'finetuning/test_loop.py', 'config/test_config.py', 'objectives/test_mlm.py',
    'objectives/test_adding_an_objective.py', 'test_bench.py', 'test_runs_in_buckets.py', 'test_compare.py',
    'test_finetune.py', 'config/test_step_flops.py', 'analysis/test_entropy.py', 'pretrained/test_warm_start.py',
    'pretrained/test_averaging.py', 'test_doctor.py', 'training/test_damage.py',
    'pretrained/test_warm_start_huggingface.py', 'test_evaluate.py', 'tasks/test_moleculenet.py',
    'models/test_recipes.py', 'performance/test_prediction.py', 'performance/test_step_profile.py',
    'training/test_gradients.py', 'training/test_mixture_runs.py',
)  # fmt: skip


def pytest_configure(config):
    """Keeps the order of the files, where xdist would begin with those of most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    ranks = {pathlib.Path(__file__).parent / name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish():
    """Spares the garbage collector what lives as long as the process, and most of its visits: 7 % of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope='module', autouse=True)
def bounded_memory():
    """Forgets compiled programs where the processes use half of the memory; what is wanted again comes from the cache.

    Each may grow to 3 GB in any case.
    """
    yield
    statistics = pathlib.Path('/proc/self/statm')
    limit = max(3e9, host_memory.usable_bytes() / 2 / int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1)))
    if statistics.exists() and int(statistics.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') > limit:
        jax.clear_caches()
        gc.collect()


def pytest_report_header():
    """Names the versions under test."""
    return f'jax {jax.__version__}, {jax.device_count()} fake devices'


@pytest.fixture(scope='session')
def prepared(tmp_path_factory) -> pathlib.Path:
    """Prepared rows of 32 tokens over a vocabulary of 64."""
    return write_prepared(tmp_path_factory.mktemp('data') / 'rows')


@pytest.fixture(scope='session')
def make_tiny_config(prepared):
    """() → a configuration for `prepared` that compiles in seconds: 2 layers of width 32, no dropout."""
    overrides = {
        'vocab_size': '64', 'sequence_length': '32', 'batch_size': '16', 'total_steps': '4',
        'data.directory': str(prepared), 'model.num_layers': '2', 'model.width': '32', 'model.num_heads': '2',
        'model.ffn_width': '64', 'model.dropout': '0.0', 'model.attention_dropout': '0.0', 'mae_lm.decoder_layers': '2',
        'evaluation.rows': '24', 'evaluation.every_steps': '4', 'checkpoint.every_steps': '4',
        'logging.every_steps': '1', 'compilation_cache': '', 'sharding': 'dp', 'num_microbatches': '1',
    }  # fmt: skip

    def make():
        config = config_lib.default_config()
        config_lib.apply_overrides(config, overrides)
        return config

    return make


@pytest.fixture
def tiny_config(make_tiny_config):
    """A configuration of `make_tiny_config`, for one test to change."""
    return make_tiny_config()


@pytest.fixture(scope='session')
def make_once(tmp_path_factory):
    """(name, make) → a directory that `make(directory)` fills: one for all processes that share the files of tests.

    The first process to want it makes it, and others that want it meanwhile wait; none of them changes it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root if is_first_process else root.parent

    def find_or_make(name, make) -> pathlib.Path:
        directory, made = root / name, root / f'{name}.made'
        with (root / f'{name}.lock').open('w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                directory.mkdir(exist_ok=True)  # what an interrupted process has begun goes on
                make(directory)
                made.touch()
        return directory

    return find_or_make


ANIMALS = {'cat': 'red', 'dog': 'green', 'bird': 'blue', 'fish': 'black', 'horse': 'white'}


@pytest.fixture(scope='session')
def animals_config(make_once):
    """A configuration whose corpus says which animal has which colour; prepared, with a tokenizer of its own."""
    return config_lib.from_json((make_once('animals', prepare_animals) / 'config.json').read_text())


def prepare_animals(root: pathlib.Path) -> None:
    """Writes the corpus, prepares it, and stores the configuration beside it."""
    rng = np.random.default_rng(0)
    sentences = [f'the {animal} is {ANIMALS[animal]}.' for animal in rng.choice(list(ANIMALS), 2000)]
    (root / 'text.txt').write_text('\n\n'.join(' '.join(sentences[i : i + 4]) for i in range(0, 2000, 4)))
    config = config_lib.default_config()
    overrides = {
        'vocab_size': '300', 'tokenizer.byte_fallback': 'False', 'sequence_length': '32', 'batch_size': '16',
        'total_steps': '150', 'data.directory': str(root / 'data'), 'data.corpus': f'text:{root}/text.txt',
        'data.validation_percent': '10', 'model.num_layers': '2', 'model.width': '64', 'model.num_heads': '2',
        'model.ffn_width': '128', 'model.dropout': '0.0', 'model.attention_dropout': '0.0',
        'optimizer.learning_rate': '3e-3', 'compilation_cache': '', 'evaluation.rows': '20',
        'evaluation.every_steps': '50', 'checkpoint.every_steps': '50',
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    try:
        prepare.run(config, num_workers=1)
    except config_lib.ConfigError as error:  # the text has few pieces: take as many as it yields
        config.vocab_size = int(str(error).split('largest possible value is ')[1].split('.')[0])
        prepare.run(config, num_workers=1)
    (root / 'config.json').write_text(config_lib.to_json(config))


@pytest.fixture(scope='session')
def cloud_server() -> cloud_storage.Server:
    """Google Cloud Storage for tensorstore, which reads its address once."""
    server = cloud_storage.Server(cloud_storage.Store())
    os.environ.update(TENSORSTORE_GCS_HTTP_URL=server.url, GOOGLE_AUTH_TOKEN_FOR_TESTING='none')
    return server


@pytest.fixture
def cloud(monkeypatch, cloud_server) -> cloud_storage.Store:
    """The objects behind gs://, and behind s3://, empty."""
    cloud_server.store = store = cloud_storage.Store()
    kind = cloud_storage.filesystem(store)
    for scheme in ('gs', 'gcs', 's3'):
        monkeypatch.setitem(_registry, scheme, kind)
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    # Orbax asks with this package what kind of bucket it is.
    client = types.SimpleNamespace(get_bucket=lambda name: types.SimpleNamespace(hierarchical_namespace_enabled=False))
    package = types.SimpleNamespace(Client=lambda: client)
    monkeypatch.setitem(sys.modules, 'google.cloud', types.SimpleNamespace(storage=package))
    monkeypatch.setitem(sys.modules, 'google.cloud.storage', package)
    return store


@pytest.fixture
def bucket(cloud):
    """gs://bucket, empty, and the ranges of bytes that are read of it: (path, requests)."""
    return buckets.path('gs://bucket'), _registry['gs'].requests


@pytest.fixture(scope='session')
def minimal_pairs(tmp_path_factory) -> pathlib.Path:
    """A directory in the format of BLiMP: which colour an animal has (semantics), and where the article is (syntax)."""
    directory = tmp_path_factory.mktemp('blimp')
    for name, field in {'colour': 'semantics', 'article': 'syntax'}.items():
        lines = []
        for animal, colour in ANIMALS.items():
            wrong = [f'the {animal} is {other}.' for other in ANIMALS.values() if other != colour]
            for bad in wrong if name == 'colour' else [f'{animal} the is {colour}.', f'the is {animal} {colour}.']:
                pair = {'sentence_good': f'the {animal} is {colour}.', 'sentence_bad': bad}
                lines.append(pair | {'field': field, 'linguistics_term': name, 'UID': name})
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        (directory / f'{name}.jsonl').write_text(text, encoding='utf-8')
    return directory


@pytest.fixture(scope='session')
def trained(animals_config, make_once):
    """A model that has learned the colours: (workdir, mesh, model)."""
    with hidden_devices():
        workdir = make_once('trained', lambda directory: train.train(animals_config, directory / 'run')) / 'run'
    mesh = make_mesh(devices=jax.devices()[:1])
    return workdir, mesh, loading.load(workdir, mesh)


@contextlib.contextmanager
def hidden_devices():
    """Hides all devices but one, whose programs compile in two thirds of the time."""
    device = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda: device)
        patch.setattr(jax, 'device_count', lambda: 1)
        yield


@pytest.fixture(scope='module')
def one_device():
    """`hidden_devices`, from the first test of a file that wants it to the last test of the file."""
    with hidden_devices():
        yield


@pytest.fixture
def one_device_here():
    """`hidden_devices`, during one test."""
    with hidden_devices():
        yield


@pytest.fixture
def all_devices(one_device):
    """Shows all devices during one test, in a file whose other tests see one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', jax.local_devices)
        patch.setattr(jax, 'device_count', jax.local_device_count)
        yield
