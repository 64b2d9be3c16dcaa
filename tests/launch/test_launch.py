"""The programs in `launch/` and `.ci/run`: what they would do, and what they do with stand-ins for clouds."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile

import cloud_commands
import pytest
import yaml
from stand_ins import ROOT, launch, lines, wait_for

PROGRAMS = ['demo', 'test', 'gpu_local', 'slurm', 'tpu_pod', 'gke']
SCRIPTS = [ROOT / 'launch' / p for p in ['common.sh', *PROGRAMS]] + [ROOT / '.ci' / 'run']

RUN = ['--config=configs/mlm.py:base', '--workdir=runs/base']
ON_BUCKETS = ['--config=configs/mlm.py:base', '--workdir=gs://bucket/runs/base', '--data=gs://rows/books']
TPU_POD = ['--name=bert', '--zone=us-west4-a']
GKE = ['--name=bert', '--source=https://example.org/mlm_jax', *ON_BUCKETS]
GKE_TPU = [*GKE, '--tpu=tpu-v5-lite-podslice', '--topology=4x4']
TWO_SLICES = '--set=slice=2xv5e-16'

# What a dry run must print, in this order.
DRY_RUNS = {
    ('demo',): ['-m venv', 'pip install', 'mlm_jax.prepare', 'mlm_jax.train', 'mlm_jax.evaluate', '[MASK]'],
    ('test', '-k', 'masking'): [
        '-m venv',
        ".[test]'",
        '-m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile -k masking',
    ],
    ('test', '--extras=peer,test,tpu'): [".[peer,test,tpu]'", '-m pytest'],
    ('gpu_local', *RUN, '--cuda=12'): [".[cuda12]'", 'mlm_jax.prepare', 'mlm_jax.train', 'accelerator=gpu'],
    ('slurm', *RUN, '--nodes=2'): ['install', '#SBATCH --nodes=2', 'prepare', 'srun', 'train', '+ sbatch'],
    ('tpu_pod', 'up', *TPU_POD, '--type=v5p-16'): ['describe bert', 'create bert', 'v2-alpha-tpuv5'],
    ('tpu_pod', 'run', *TPU_POD, *ON_BUCKETS): ['tar ', 'worker-setup', 'worker-start', 'gcsfuse', 'tail'],
    ('tpu_pod', 'logs', *TPU_POD): ['--worker=0', 'tail'],
    ('tpu_pod', 'stop', *TPU_POD): ['--worker=all', 'kill'],
    ('tpu_pod', 'down', *TPU_POD, '--queued'): ['queued-resources delete bert'],
    ('tpu_pod', 'up', *TPU_POD, '--type=v5litepod-16', '--slices=2', '--spot'): [
        'queued-resources describe',
        'queued-resources create',
        '--node-count=2 --node-prefix=bert',
        '--spot',
    ],
    ('tpu_pod', 'run', *TPU_POD, *ON_BUCKETS, '--data-access=copy'): [
        'gcloud storage rsync',
        '--set=data.directory=/home/you/mlm_jax/data --set=accelerator=tpu',
    ],
    ('tpu_pod', 'run', *TPU_POD, *ON_BUCKETS, '--slices=2', '--', TWO_SLICES): [
        '--node=all --worker=all',
        'scp',
        '--node=all',
        'worker-setup',
        '--data-access=mount',
        '-o ro',
        '--cache-dir=',
        '--set=data.directory=/home/you/mlm_jax/rows/rows/books --set=data.block_kib=256',
        '--node=0 --worker=0',
    ],
    (
        'tpu_pod',
        'run',
        *TPU_POD,
        *ON_BUCKETS,
        '--workdir-access=direct',
        '--data-access=direct',
        '--',
        '--set=data.block_kib=512',
    ): [
        "'.[tpu,gcs]'",
        '--set=data.directory=gs://rows/books --set=accelerator=tpu --set=data.block_kib=512',
    ],
    ('tpu_pod', 'stop', *TPU_POD, '--slices=2'): ['queued-resources ssh bert --node=all --worker=all', 'kill'],
    ('tpu_pod', 'down', *TPU_POD, '--slices=2'): ['queued-resources delete bert --force'],
    ('gpu_local', RUN[0], '--workdir=s3://bucket/runs/base', '--cuda=12'): [
        ".[cuda12,s3]'",
        '--workdir=s3://bucket/runs/base',
    ],
    ('gpu_local', *RUN, '--cuda=12', '--extras=parquet,wandb', '--', '--set=data.directory=gs://rows/books'): [
        ".[cuda12,parquet,wandb,gcs]'",
        'mlm_jax.prepare',
    ],
    ('slurm', *RUN, '--extras=hub', '--cuda=13'): [".[cuda13,hub]'", '+ sbatch'],
    ('slurm', RUN[0], '--workdir=s3://bucket/runs/base', '--process-per=node'): [
        ".[cuda12,s3]'",
        '--workdir=s3://bucket/runs/base',
    ],
    ('slurm', RUN[0], '--workdir=s3://bucket/runs/base', '--gpus-per-node=1'): ['--workdir=s3://bucket/runs/base'],
    ('slurm', RUN[0], '--workdir=gs://bucket/runs/base'): [
        ".[cuda12,gcs]'",
        'tee runs/base/train.sbatch',
        '--output=runs/base/',
        '--workdir=gs://bucket/runs/base',
    ],
    ('tpu_pod', 'run', *TPU_POD, *ON_BUCKETS, '--extras=huggingface,hub', '--', '--set=init_from=s3://models/base'): [
        "'.[tpu,huggingface,hub,s3]'",
        '--set=init_from=s3://models/base',
    ],
    ('gke', 'run', *GKE_TPU): ['kubectl apply', 'kind: JobSet', 'mlm_jax.train --distributed'],
    ('gke', 'logs', '--name=bert'): ['kubectl logs', 'completion-index=0'],
    ('gke', 'down', '--name=bert'): ['kubectl delete jobset bert'],
}


def in_order(needles, text):
    return re.search('.*'.join(map(re.escape, needles)), text, re.DOTALL)


@pytest.mark.smoke
@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(['bash', '-n', str(script)], check=True)
    assert script.name == 'common.sh' or os.access(script, os.X_OK)


def test_shellcheck():
    shellcheck = shutil.which('shellcheck')
    if shellcheck is None:
        pytest.skip('shellcheck is not installed')
    subprocess.run([shellcheck, '-x', *map(str, SCRIPTS)], check=True, cwd=ROOT)


@pytest.mark.parametrize('program', PROGRAMS)
def test_help_has_an_example_and_names_every_option(program):
    text = launch(ROOT, program, '--help')
    assert '--dry-run' in text and re.search('Examples?:', text)
    options = re.search(r"^parse_options '([^']*)'", (ROOT / 'launch' / program).read_text(), re.MULTILINE)[1]
    for option in options.split():
        assert f'--{option}' in text
    assert not text.startswith('#!') and 'set -euo' not in text


@pytest.mark.smoke
@pytest.mark.parametrize('arguments', DRY_RUNS, ids=lambda a: '-'.join(w for w in a[:2] if w.isidentifier()))
def test_dry_run_prints_the_commands_and_touches_nothing(checkout, monkeypatch, arguments):
    for name in ('VENV', 'PYTHON'):
        monkeypatch.delenv(name, raising=False)
    before = sorted(checkout.rglob('*'))
    # In front of what is handed on to a program.
    text = launch(checkout, arguments[0], '--dry-run', *arguments[1:])
    assert in_order(DRY_RUNS[arguments], text), text
    assert cloud_commands.check_printed(text) > 0 or arguments[0] not in ('tpu_pod', 'gke')
    assert sorted(checkout.rglob('*')) == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['demo', '--workdir', 'runs/other'], 'written --workdir=VALUE'),
        (['gpu_local', *RUN, '--gpus=2'], 'unknown option --gpus=2'),
        (['gpu_local', RUN[0], '--workdir=http://host/base'], 'give a directory, gs://BUCKET/PATH or s3://'),
        (['slurm', RUN[0], '--workdir=http://host/base'], 'use letters, digits'),
        (['slurm', RUN[0], '--workdir=s3://bucket/base'], 'Give --nodes=1 --process-per=node, which\nis one process'),
        (
            ['slurm', RUN[0], '--workdir=s3://bucket/base', '--nodes=2', '--process-per=node'],
            'only one process can write',
        ),
        (
            ['slurm', RUN[0], '--workdir=s3://bucket/base', '--nodes=11', '--gpus-per-node=1'],
            'only one process can write',
        ),
        (['slurm', *RUN, '--node=2'], 'unknown option --node=2; there are: --help --dry-run --config='),
        (['slurm', *RUN, '--nodes'], 'written --nodes=VALUE'),
        (['slurm', *RUN, '--nodes=two'], 'whole number'),
        (['slurm', '--workdir=runs/base'], '--config is missing: for example'),
        (['tpu_pod', 'up', *TPU_POD, '--fast'], 'unknown option --fast'),
        (['tpu_pod', 'up', *TPU_POD], '--type is missing'),
        (['tpu_pod', 'up', *TPU_POD, '--type=v99-8'], 'add --version'),
        (['tpu_pod', *TPU_POD], 'one action'),
        (['tpu_pod', 'go', *TPU_POD], 'unknown action go'),
        (['tpu_pod', 'up', *TPU_POD, '--slices=0'], 'at least 1'),
        (['tpu_pod', 'run', *TPU_POD, *ON_BUCKETS, '--data-access=nfs'], 'must be one of: mount copy direct'),
        (
            ['tpu_pod', 'run', *TPU_POD, *ON_BUCKETS, '--config=mlm:base,slice=2xv5e-16'],
            'fitted to 2 slices (mlm:base,slice=2xv5e-16), and --slices=1: give --slices=2, or slice=v5e-16',
        ),
        (['gke', 'run', *GKE_TPU, '--slices=2', '--config=mlm:base,slice=v5e-16'], 'or slice=2xv5e-16'),
        (['gke', 'run', *GKE_TPU, '--', '--set', 'slice=2xv5e-16'], 'give --slices=2, or slice=v5e-16'),
        (['gke', 'run', *GKE, '--gpu=nvidia-l4', '--slices=2'], '--slices goes with --tpu'),
        (['tpu_pod', 'run', *TPU_POD, *RUN, '--data=gs://rows/books'], "on each worker's own disk"),
        (['gke', 'run', *GKE_TPU, '--cpu=3'], 'unknown option --cpu=3'),
        (['gke', 'run', *GKE], 'give --tpu=TYPE'),
        (['gke', 'run', *GKE_TPU, '--gpu=nvidia-l4'], 'not both'),
        (['gke', 'run', *GKE_TPU, '--nodes=2'], 'the topology decides'),
        (['gke', 'run', *GKE, '--tpu=tpu-v4-podslice', '--topology=16'], '--topology=16 must be like'),
        (['gke', 'run', *GKE_TPU, '--name=My_Bert'], 'lower-case'),
    ],
    ids=lambda value: None if isinstance(value, str) else value[0],
)
def test_mistakes_are_refused_with_a_cure(checkout, arguments, message):
    error = launch(checkout, arguments[0], '--dry-run', *arguments[1:], code=2)
    assert message in error and f'launch/{arguments[0]} --help' in error


@pytest.mark.parametrize(
    ('tool', 'arguments'),
    [
        ('sbatch', ['slurm', *RUN]),
        ('gcloud', ['tpu_pod', 'up', *TPU_POD, '--type=v6e-8']),
        ('kubectl', ['gke', 'run', *GKE_TPU]),
    ],
)
def test_a_missing_tool_is_named(checkout, tmp_path, monkeypatch, tool, arguments):
    for present in ('bash', 'basename', 'dirname'):
        (tmp_path / present).symlink_to(shutil.which(present))
    monkeypatch.setenv('PATH', str(tmp_path))
    assert f'{tool} is not installed' in launch(checkout, *arguments, code=1)


def test_printed_commands_read_back(checkout):
    awkward = ["it's", 'a b', '$HOME', '', 'x;y', '--set=text=two words', '*']
    text = launch(checkout, 'test', '--dry-run', '--python=' + sys.executable, '--', *awkward)
    assert shlex.split(text.splitlines()[-1])[-len(awkward) :] == awkward


def test_demo_installs_once_and_hands_arguments_on(checkout, environment, tmp_path):
    venv = environment(checkout / '.venv')
    for _ in range(2):
        launch(checkout, 'demo', '--set=total_steps=3', '--verbosity=1')
    modules = lines(tmp_path / 'modules')
    programs = ['mlm_jax.prepare', 'mlm_jax.train', 'mlm_jax.evaluate']
    assert [m.split()[1] for m in modules] == ['pip', *programs, *programs]
    assert modules[1] == '-m mlm_jax.prepare --config=configs/demo.py --set=total_steps=3'
    assert modules[2].endswith('--workdir=runs/demo --set=total_steps=3 --verbosity=1')

    # More extras are installed when they are asked for; a changed requirement installs again.
    launch(checkout, 'test', f'--venv={venv}')
    launch(checkout, 'test', '--extras=test', '--venv=.venv')
    with (checkout / 'setup.py').open('a') as file:
        file.write('# another requirement\n')
    launch(checkout, 'test')
    modules = lines(tmp_path / 'modules')[7:]
    assert [m.split()[1] for m in modules] == ['pip', 'pytest', 'pytest', 'pip', 'pytest']
    assert modules[0].endswith('--editable .[test]')


@pytest.mark.parametrize('workdir', ['runs/other', '/tmp/other', 'gs://bucket/other'])
def test_demo_trains_evaluates_and_reports_in_one_workdir(checkout, environment, tmp_path, workdir):
    environment(checkout / '.venv')
    text = launch(checkout, 'demo', f'--workdir={workdir}', '--set=total_steps=3')
    _, _, train, evaluate = lines(tmp_path / 'modules')
    assert train == f'-m mlm_jax.train --config=configs/demo.py --workdir={workdir} --set=total_steps=3'
    assert f' --model={workdir} ' in evaluate
    place = checkout / workdir if workdir.startswith('runs') else workdir
    assert text.endswith(f'The run is in {place}.\nThe loss curve: {place}/loss_curve.png\n')


@pytest.mark.parametrize(
    'arguments',
    [
        ['--set', 'data.corpus=text:two words/*.txt', '--config.batch_size', '8'],
        ['-set=data.corpus=text:a,b', '--config.batch_size=8', '--config', 'configs/mlm.py:mini'],
    ],
)
def test_prepare_is_given_settings_of_one_word_and_of_two(checkout, environment, tmp_path, arguments):
    environment(checkout / '.venv')
    launch(checkout, 'gpu_local', *RUN, '--cuda=12', '--', '--verbosity', '1', *arguments, '--note=--set')
    _, prepare, train = lines(tmp_path / 'modules')
    given = ' '.join(arguments)
    assert prepare == f'-m mlm_jax.prepare --config=configs/mlm.py:base {given}'
    assert train.endswith(f'--set=accelerator=gpu --verbosity 1 {given} --note=--set')


@pytest.mark.parametrize(
    ('arguments', 'prepares'),
    [
        (['--set=data.directory=data/en:0.7,data/de:0.3'], False),
        (['--set', 'data.directory=data/en,gs://rows/de'], False),
        (['--set=data.directory=data/en', '--set=data.directory=data/en,data/de'], False),
        (['--set=data.directory=data/en,data/de', '--set=data.directory=data/en'], True),
        (['--set=data.directory=data/one, with a comma'], True),
        (['--set=data.corpus=text:a,b'], True),
    ],
)
def test_mixtures_are_trained_on_and_not_prepared(checkout, environment, stand_in, tmp_path, arguments, prepares):
    environment(checkout / '.venv')
    (checkout / 'data' / 'one, with a comma').mkdir(parents=True)
    stand_in('sbatch')
    stand_in('srun', 'while [[ $1 == -* ]]; do shift; done; "$@"')
    launch(checkout, 'gpu_local', *RUN, '--cuda=12', '--', *arguments)
    launch(checkout, 'slurm', *RUN, '--nodes=2', '--', *arguments)
    subprocess.run(
        ['bash', str(checkout / 'runs/base/train.sbatch')],
        check=True,
        env={**os.environ, 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'},
    )
    modules = lines(tmp_path / 'modules')
    programs = [m.split()[1].removeprefix('mlm_jax.') for m in modules]
    assert programs == ['pip', *['prepare'] * prepares, 'train', *['prepare'] * 2 * prepares, 'train']
    assert all(m.endswith(' '.join(arguments)) for m in modules if ' mlm_jax.train ' in m)


def test_a_failing_step_ends_the_program(checkout, stand_in):
    body = f'[[ $2 != pytest ]] || exit 3; [[ $1 == -m ]] || exec {shlex.quote(sys.executable)} "$@"'
    stand_in('python', body, checkout / 'v/bin/python')
    launch(checkout, 'test', '--venv=v', code=3)


def test_environments_that_are_none_are_left_alone(checkout):
    (checkout / 'precious').mkdir()
    assert 'no virtual environment' in launch(checkout, 'test', '--venv=precious', code=1)
    assert 'not a Python of version' in launch(checkout, 'test', '--venv=new', '--python=/bin/false', code=1)


def test_a_python_that_only_pretends_is_passed_over(checkout, stand_in):
    stand_in('python3', 'echo "python3: command not found" >&2; exit 127')
    stand_in('python3.14', 'echo "3.14 /opt/python3.14"')
    stand_in('python3.13', 'exit 127')
    assert '+ /opt/python3.14 -m venv' in launch(checkout, 'test', '--dry-run')


def test_a_python_that_is_too_new_for_wheels_must_be_asked_for(checkout, stand_in):
    for version in ('3.12', '3.15'):
        stand_in(f'python{version}', f'echo "{version} /opt/python{version}"')
    stand_in('python3', 'echo "3.15 /opt/python3.15"')
    stand_in('python', 'exit 127')
    for version in ('3.11', '3.13', '3.14'):
        stand_in(f'python{version}', 'exit 127')
    assert '+ /opt/python3.12 -m venv' in launch(checkout, 'test', '--dry-run')
    asked = subprocess.run(
        [checkout / 'launch' / 'test', '--dry-run', '--python=python3'], capture_output=True, text=True, check=True
    )
    assert '+ /opt/python3.15 -m venv' in asked.stdout
    assert 'launch/test: some requirements may have no wheels for Python 3.15, unlike 3.11 to 3.14' in asked.stderr
    stand_in('python3.12', 'exit 127')
    assert 'no Python of version 3.11 to 3.14' in launch(checkout, 'test', '--dry-run', code=1)


@pytest.mark.parametrize(
    ('gpus', 'extra'),
    [
        ('580.65.06, 9.0', 'cuda13'),
        ('570.86.15, 9.0', 'cuda12'),
        ('580.65.06, 7.0', 'cuda12'),
        ('580.65.06, 9.0\n580.65.06, 8.9', 'cuda13'),
        ('580.65.06, 12.0\n580.65.06, 7.0', 'cuda12'),
    ],
)
def test_gpu_local_asks_the_driver(checkout, environment, stand_in, tmp_path, gpus, extra):
    environment(checkout / '.venv')
    stand_in('nvidia-smi', f'echo {shlex.quote(gpus)}')
    launch(checkout, 'gpu_local', *RUN, '--', '--set=batch_size=8', '--verbosity=1')
    pip, prepare, train = lines(tmp_path / 'modules')
    assert f'.[{extra}]' in pip
    assert prepare.endswith('--config=configs/mlm.py:base --set=batch_size=8')
    assert '--workdir=runs/base' in train and train.endswith('--set=batch_size=8 --verbosity=1')


def test_gpu_local_refuses_an_old_driver_and_a_silent_one(checkout, stand_in):
    stand_in('nvidia-smi', 'echo 470.82.01, 8.0')
    assert 'driver 470 is too old' in launch(checkout, 'gpu_local', *RUN, code=1)
    stand_in('nvidia-smi', 'echo "no devices were found"; exit 6')
    assert 'no devices were found' in launch(checkout, 'gpu_local', *RUN, code=1)


@pytest.mark.parametrize('process_per', ['gpu', 'node'])
def test_slurm_submits_a_script_that_trains(checkout, environment, stand_in, tmp_path, process_per):
    environment(checkout / '.venv')
    stand_in('sbatch')
    note = 'echo "$JAX_LOCAL_DEVICE_IDS $SETUP" >>$HOME/seen'
    numbers = 'export SLURM_PROCID=0 SLURM_NTASKS=2'
    stand_in('srun', f'{numbers}; while [[ $1 == -* ]]; do shift; done; "$@"; {note}')
    options = ['--nodes=2', '--gpus-per-node=4', '--partition=gpu', '--setup=export SETUP=done']
    corpus = "--set=data.corpus=text:it's here/*.txt"
    launch(checkout, 'slurm', *RUN, *options, f'--process-per={process_per}', '--', corpus)
    script = checkout / 'runs/base/train.sbatch'
    assert f'sbatch {script.relative_to(checkout)}' in lines(tmp_path / 'calls')

    header = dict(re.findall(r'^#SBATCH --([-a-z]+)(?:=(.*))?$', script.read_text(), re.MULTILINE))
    assert header['nodes'] == '2' and header['gpus-per-node'] == '4' and header['partition'] == 'gpu'
    assert header['ntasks-per-node'] == {'gpu': '4', 'node': '1'}[process_per]
    assert header['cpus-per-task'] == {'gpu': '8', 'node': '32'}[process_per]
    assert 'requeue' in header and 'account' not in header

    subprocess.run(['bash', str(script)], check=True, cwd='/')
    _, share, prepare, train = lines(tmp_path / 'modules')
    assert prepare == f'-m mlm_jax.prepare --config=configs/mlm.py:base {corpus}'
    assert share == f'{prepare} --task=0 --of=2'
    assert train.startswith('-m mlm_jax.train --distributed') and train.endswith(corpus)
    assert lines(tmp_path / 'home' / 'seen') == [{'gpu': ' done', 'node': '0,1,2,3 done'}[process_per]] * 2


@pytest.fixture
def slurm_job(checkout, environment, stand_in, tmp_path):
    """A function that starts the script of a job, and returns its process as soon as there is ~/started."""
    environment(checkout / '.venv')
    for name in ('sbatch', 'scontrol'):
        stand_in(name)

    def start(*options, srun=None):
        stand_in('srun', srun or 'while [[ $1 == -* ]]; do shift; done; exec "$@"')
        launch(checkout, 'slurm', *RUN, *options)
        variables = {'SLURM_JOB_ID': '7', 'SLURM_PROCID': '0', 'SLURM_NTASKS': '2'}
        job = subprocess.Popen(['bash', str(checkout / 'runs/base/train.sbatch')], env={**os.environ, **variables})
        wait_for((tmp_path / 'home' / 'started').exists)
        return job

    return start


def requeued(tmp_path):
    return 'scontrol requeue 7' in lines(tmp_path / 'calls')


TRAINS = (
    'trap "echo TERM >>~/told; sleep 0.3; exit 75" TERM; echo $$ >~/pid; touch ~/started; while :; do sleep 0.1; done'
)


@pytest.mark.parametrize(('number', 'comes_back'), [(signal.SIGUSR1, True), (signal.SIGUSR2, False)])
def test_slurm_saves_and_requeues_before_the_time_limit_and_ends_when_asked(slurm_job, tmp_path, number, comes_back):
    job = slurm_job(srun=TRAINS)
    job.send_signal(number)
    assert job.wait(timeout=10) == 75
    assert lines(tmp_path / 'home' / 'told') == ['TERM'], 'a second one would end train before it has saved'
    assert requeued(tmp_path) == comes_back


@pytest.mark.parametrize('is_canceled', [True, False])
def test_slurm_requeues_what_is_preempted_and_not_what_is_canceled(slurm_job, tmp_path, is_canceled):
    job = slurm_job(srun=TRAINS)
    if is_canceled:  # Slurm tells all processes of the job, else only those that srun has started
        job.send_signal(signal.SIGTERM)
    os.kill(int((tmp_path / 'home' / 'pid').read_text()), signal.SIGTERM)
    assert job.wait(timeout=10) == 75
    assert requeued(tmp_path) != is_canceled


@pytest.mark.parametrize('nodes', [1, 2])
@pytest.mark.parametrize(('number', 'comes_back'), [(signal.SIGUSR1, True), (signal.SIGUSR2, False)])
def test_slurm_requeues_a_job_that_still_prepares(slurm_job, checkout, stand_in, tmp_path, nodes, number, comes_back):
    prepares = '[[ $2 != mlm_jax.prepare ]] || { touch $HOME/started; exec sleep 30; }'
    python = f'[[ $1 == -m ]] || exec {shlex.quote(sys.executable)} "$@"; echo "$2" >>{tmp_path}/modules; {prepares}'
    stand_in('python', python, checkout / '.venv/bin/python')
    job = slurm_job(f'--nodes={nodes}')
    job.send_signal(number)
    assert job.wait(timeout=10) == 128 + signal.SIGTERM
    assert requeued(tmp_path) == comes_back
    assert lines(tmp_path / 'modules') == ['pip', 'mlm_jax.prepare'], 'nothing begins after it'


def test_slurm_requeues_a_job_whose_time_is_up_before_its_programs_begin(slurm_job, tmp_path):
    """Their modules may take long to load, and a signal then waits until the shell is free."""
    job = slurm_job('--setup=touch $HOME/started; sleep 0.5')
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=10) == 128 + signal.SIGTERM
    assert requeued(tmp_path)


def test_slurm_ends_a_job_that_fails(checkout, environment, stand_in, tmp_path):
    environment(checkout / '.venv')
    for name, body in (('sbatch', ''), ('scontrol', ''), ('srun', 'exit 3')):
        stand_in(name, body)
    launch(checkout, 'slurm', *RUN)
    assert subprocess.run(['bash', str(checkout / 'runs/base/train.sbatch')], check=False).returncode == 3
    assert not any(call.startswith('scontrol') for call in lines(tmp_path / 'calls'))


@pytest.mark.skipif(not pathlib.Path('/proc').exists(), reason='the workers of a TPU run Linux')
def test_tpu_pod_copies_installs_and_trains(checkout, environment, stand_in, tmp_path):
    """gcloud's stand-in runs here what it should run on the workers, in a home directory of their own."""
    worker = tmp_path / 'worker'
    environment(worker / 'mlm_jax' / 'venv')
    stand_in(
        'gcloud',
        f"""
        for word; do
          case $word in --command=*) command=${{word#--command=}} ;; --worker=0) log=yes ;; esac
        done
        case "$1 $2 $3 $4" in
          "storage rsync"*) touch "$5/copied" ;;
          *describe*) echo READY ;;
          *scp*) cp "$5" {worker}/mlm_jax.tar.gz ;;
          *ssh*) [[ $log ]] || (cd {worker}; HOME={worker} bash -c "$command") ;;
        esac""",
    )
    stand_in('gcsfuse')
    stand_in('mountpoint', 'exit 1')
    (checkout / '.venv').mkdir()
    (checkout / 'runs').mkdir()

    assert 'exists and is ready' in launch(checkout, 'tpu_pod', 'up', *TPU_POD, '--type=v5litepod-16')
    further = ['--set=model.dtype=bfloat16', "--note=it's"]
    launch(checkout, 'tpu_pod', 'run', *TPU_POD, *ON_BUCKETS, '--data-access=copy', '--', *further)
    here = worker / 'mlm_jax'
    assert sorted(p.name for p in (here / 'code').iterdir()) == ['launch', 'mlm_jax', 'setup.py']
    assert (here / 'code/mlm_jax/data/rows.py').exists() and (here / 'data/copied').exists()
    (mount,) = (c for c in lines(tmp_path / 'calls') if c.startswith('gcsfuse '))
    assert mount.endswith(f'bucket {here}/buckets/bucket')
    wait_for(lambda: len(lines(tmp_path / 'modules')) == 2)
    pip, train = lines(tmp_path / 'modules')
    assert '.[tpu]' in pip
    assert f'--distributed --config=configs/mlm.py:base --workdir={here}/buckets/bucket/runs/base' in train
    assert train.endswith(' '.join([f'directory={here}/data', '--set=accelerator=tpu', *further]))

    # What still trains is neither overwritten nor started twice, until it is stopped.
    running = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)', 'mlm_jax.train'])
    (here / 'train.pid').write_text(f'{running.pid}\n')
    wait_for(lambda: 'mlm_jax.train' in pathlib.Path(f'/proc/{running.pid}/cmdline').read_text())
    again = launch(checkout, 'tpu_pod', 'run', *TPU_POD, *ON_BUCKETS, code=1)
    assert 'training runs on bert already' in again
    launch(checkout, 'tpu_pod', 'stop', *TPU_POD)
    assert running.wait(timeout=10) == -15
    launch(checkout, 'tpu_pod', 'run', *TPU_POD, *ON_BUCKETS)


TARS = {
    # Of macOS: it drops the ./ of what it is to leave out, and looks for it at every level.
    'like_bsdtar': 'words=(); for word; do words+=("${word/#--exclude=.\\//--exclude=}"); done; exec %s "${words[@]}"',
    'bsdtar': 'exec %s "$@"',
    'tar': 'exec %s "$@"',
}


@pytest.fixture(params=TARS)
def copied(request, checkout, stand_in, tmp_path):
    """A function that runs `launch/tpu_pod run`, and returns the archive that it has sent to the workers."""
    real = shutil.which('tar' if request.param == 'like_bsdtar' else request.param)
    if real is None:
        pytest.skip(f'{request.param} is not installed')
    stand_in('tar', TARS[request.param] % shlex.quote(real))
    stand_in('gcloud', f'[[ $4 != scp ]] || cp "$5" {tmp_path}/archive.tar.gz')

    def run():
        launch(checkout, 'tpu_pod', 'run', *TPU_POD, *ON_BUCKETS)
        return tarfile.open(tmp_path / 'archive.tar.gz')

    return run


def files_in(archive):
    return {member.name.removeprefix('./') for member in archive if member.isfile()}


def files_below(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob('*') if path.is_file()}


def make_files(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


def test_tpu_pod_copies_all_but_data_runs_and_environments_without_git(checkout, copied, tmp_path):
    kept = ['.git/HEAD', 'mlm_jax/data/rows.py', 'tests/data/runs/test_rows.py', "my file's notes", '--note']
    left = ['data/rows', 'runs/base/x', '.venv/x', '.venv-3.12/x', 'mine/pyvenv.cfg', 'mlm_jax/__pycache__/rows.pyc']
    make_files(checkout, *kept, *left)
    there = files_below(checkout)
    with copied() as archive:
        assert files_in(archive) == there - set(left)
    assert not list(tmp_path.glob('mlm_jax-*')), 'what was made for the copy is gone'


def test_tpu_pod_copies_what_git_tracks_and_new_code(checkout, copied, tmp_path):
    def git(*words, directory=checkout):
        command = ['git', '-c', 'user.name=me', '-c', 'user.email=me@example.org', *words]
        return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()

    tracked = ['configs/mlm.py', "notes/my file's notes", '--note', 'books/tracked.txt']
    make_files(checkout, *tracked, 'mlm_jax/deleted.py')
    shutil.copy(ROOT / '.gitignore', checkout)
    git('init')
    git('add', '.')
    git('commit', '--message=first')
    commit = git('describe', '--always', '--abbrev=40')
    tracked = files_below(checkout) - {'mlm_jax/deleted.py'}

    (checkout / 'mlm_jax/deleted.py').unlink()
    (checkout / 'configs/mlm.py').write_text('changed here')
    new = ['configs/mine.py', 'mlm_jax/data/new words.json', 'ideas/to try/mine.py']
    left = ['books/0.txt', 'models/bert/model.safetensors', 'rows.tar', 'data/books/x.py', 'runs/base/x', '.venv/x.py']
    make_files(checkout, *new, *left, 'mine/pyvenv.cfg', 'mine/lib/site.py', 'mlm_jax/__pycache__/rows.pyc')
    with copied() as archive:
        assert files_in(archive) == tracked | set(new)
        archive.extractall(tmp_path / 'worker', filter='data')
    assert (tmp_path / 'worker/configs/mlm.py').read_text() == 'changed here'
    assert git('describe', '--always', '--abbrev=40', '--dirty', directory=tmp_path / 'worker') == f'{commit}-dirty'


def test_tpu_pod_creates_a_preempted_tpu_anew(checkout, stand_in, tmp_path):
    stand_in('gcloud', '[[ $4 != describe ]] || echo PREEMPTED')
    launch(checkout, 'tpu_pod', 'up', *TPU_POD, '--project=p', '--type=v6e-8', '--spot')
    calls = [c.removeprefix('gcloud compute tpus tpu-vm ') for c in lines(tmp_path / 'calls')]
    place = '--zone=us-west4-a --project=p'
    assert calls[1:] == [
        f'delete bert --quiet {place}',
        f'create bert --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e --spot {place}',
    ]


def test_tpu_pod_asks_anew_for_slices_of_which_one_was_taken_away(checkout, stand_in, tmp_path):
    marker = tmp_path / 'created'
    stand_in(
        'gcloud',
        f'case $4 in create) touch {marker} ;; describe) [[ -e {marker} ]] && echo ACTIVE || echo SUSPENDED ;; esac',
    )
    text = launch(checkout, 'tpu_pod', 'up', *TPU_POD, '--type=v6e-256', '--spot', '--slices=4')
    assert 'bert is ACTIVE' in text
    calls = [c.removeprefix('gcloud compute tpus queued-resources ') for c in lines(tmp_path / 'calls')]
    assert [call.split()[0] for call in calls] == ['describe', 'delete', 'create', 'describe']
    assert cloud_commands.check_printed(text) == 4


def job_set(checkout, stand_in, tmp_path, *arguments):
    stand_in('kubectl', f'cat >{tmp_path / "job.yaml"}')
    launch(checkout, 'gke', 'run', *arguments)
    (workers,) = yaml.safe_load((tmp_path / 'job.yaml').read_text())['spec']['replicatedJobs']
    job = workers['template']['spec']
    return job, job['template']['spec']


def test_gke_on_tpus(checkout, stand_in, tmp_path):
    spec, pod = job_set(checkout, stand_in, tmp_path, *GKE_TPU, '--spot', '--', "--set=data.corpus=it's")
    assert spec['parallelism'] == spec['completions'] == 4
    assert pod['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
        'cloud.google.com/gke-tpu-topology': '4x4',
        'cloud.google.com/gke-spot': 'true',
    }
    (container,) = pod['containers']
    assert container['resources']['limits'] == {'google.com/tpu': 4}
    assert {m['name'] for m in container['volumeMounts']} == {v['name'] for v in pod['volumes']}
    buckets = [v['csi']['volumeAttributes']['bucketName'] for v in pod['volumes'] if 'csi' in v]
    assert buckets == ['bucket', 'rows']
    script = container['args'][0]
    subprocess.run(['bash', '-n', '-c', script], check=True)
    train = shlex.split(script.splitlines()[-1])
    assert train[:4] == ['exec', '/venv/bin/python', '-m', 'mlm_jax.train']
    assert '--workdir=/buckets/bucket/runs/base' in train and train[-1] == "--set=data.corpus=it's"
    assert not any(word.startswith('--process_id') for word in train)


def test_gke_gives_every_slice_a_job_and_a_node_pool(checkout, stand_in, tmp_path):
    stand_in('kubectl', f'cat >{tmp_path / "job.yaml"}')
    launch(checkout, 'gke', 'run', *GKE_TPU, '--slices=2', '--', TWO_SLICES)
    job = yaml.safe_load((tmp_path / 'job.yaml').read_text())
    assert job['metadata']['annotations'] == {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
    }
    (workers,) = job['spec']['replicatedJobs']
    assert workers['replicas'] == 2 and workers['template']['spec']['parallelism'] == 4, 'nodes of one slice'


@pytest.mark.parametrize(
    ('access', 'buckets', 'rows'),
    [
        (('mount', 'copy'), {'bucket': False, 'rows': True}, '/rows/data'),
        (('mount', 'mount'), {'bucket': False, 'rows': True}, '/data/rows/books'),
        (('direct', 'direct'), {}, 'gs://rows/books'),
    ],
)
def test_gke_reaches_buckets_as_it_is_told(checkout, stand_in, tmp_path, access, buckets, rows):
    options = [f'--workdir-access={access[0]}', f'--data-access={access[1]}']
    spec, pod = job_set(checkout, stand_in, tmp_path, *GKE_TPU, *options)
    mounted = {v['csi']['volumeAttributes']['bucketName']: v['csi'] for v in pod['volumes'] if 'csi' in v}
    assert {bucket: csi['readOnly'] for bucket, csi in mounted.items()} == buckets
    assert ('fileCacheCapacity' in str(mounted)) == (access[1] == 'mount')
    script = pod['containers'][0]['args'][0]
    assert ('--set=data.block_kib=256' in script) == (access[1] != 'copy')
    assert f'--set=data.directory={rows} ' in script and ('cp -r' in script) == (access[1] == 'copy')
    assert ("'.[tpu,gcs]'" in script) == (access[0] == 'direct')
    annotations = spec['template']['metadata']['annotations']
    assert ('gke-gcsfuse/ephemeral-storage-limit' in annotations) == (access[1] == 'mount')


@pytest.mark.parametrize(
    ('arguments', 'extras'),
    [
        ([*GKE_TPU], 'tpu'),
        ([*GKE_TPU, '--extras=huggingface,hub'], 'tpu,huggingface,hub'),
        ([*GKE_TPU, '--config=continue:gs://models/base'], 'tpu,gcs'),
        ([*GKE, '--gpu=nvidia-l4', '--extras=smiles', '--', '--set=init_from=s3://models/base'], 'cuda12,smiles,s3'),
        ([*GKE, '--gpu=nvidia-l4', '--extras=cuda13', '--workdir-access=direct'], 'cuda13,gcs'),
    ],
)
def test_gke_installs_the_extras_that_a_run_needs(checkout, stand_in, tmp_path, arguments, extras):
    _, pod = job_set(checkout, stand_in, tmp_path, *arguments)
    assert f"--editable '.[{extras}]'\n" in pod['containers'][0]['args'][0]


def test_gke_on_gpus_tells_every_process_its_place(checkout, stand_in, tmp_path):
    gpus = ['--gpu=nvidia-h100-80gb', '--nodes=2', '--gpus-per-node=8']
    spec, pod = job_set(checkout, stand_in, tmp_path, *GKE, *gpus, '--data=gs://bucket/books')
    assert spec['completions'] == 2
    (container,) = pod['containers']
    assert container['resources']['limits'] == {'nvidia.com/gpu': 8}
    assert [v['csi']['readOnly'] for v in pod['volumes'] if 'csi' in v] == [False, True], 'one bucket, mounted twice'
    script = container['args'][0]
    assert '--coordinator_address=bert-workers-0-0.bert:8476 --num_processes=2' in script
    assert script.rstrip().endswith('--process_id=$JOB_COMPLETION_INDEX')
