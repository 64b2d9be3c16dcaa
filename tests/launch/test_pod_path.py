"""The pages' way from text to slices of TPUs, command by command, with stand-ins for buckets and clouds.

The commands are read from the pages. What they call of a cloud is compared with the flags that the references know
(`cloud_commands`), and the stand-ins do what matters here: a bucket is a directory, a slice is a home directory, and
what exists must have been created before.
"""

import gzip
import json
import math
import pathlib
import re
import shlex
import subprocess

import cloud_commands
import ml_collections
import pytest
import test_docs
import yaml
from stand_ins import ROOT, launch, wait_for

from mlm_jax import config as config_lib
from mlm_jax.config import overrides
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import prepared_data
from mlm_jax.files import buckets
from mlm_jax.parallel import tpu_slices

BUCKET = 'my-bucket'


def commands_of(page: str, heading: str) -> list[list[str]]:
    """The commands of a section of a page, in their order; the section ends at the next heading of its level."""
    text = (ROOT / page).read_text(encoding='utf-8')
    assert text.count(f'\n{heading}\n') == 1, f'{page} has no {heading!r}'
    section = re.split(rf'^{heading.split()[0]} ', text.split(f'\n{heading}\n')[1], flags=re.MULTILINE)[0]
    return [c for block in test_docs.read_blocks(page, section) for c in test_docs.read_commands(block.text)]


GCLOUD = """
at() { case $1 in gs://*) echo "$cloud/${1#gs://}" ;; *) echo "$1" ;; esac; }
case "$*" in *--node=all* | *--worker=all*) command=all ;; *) command=one ;; esac
for word; do case $word in --command=*) remote=${word#--command=} ;; esac; done
state=READY workers=$cloud/worker0
[[ $3 != queued-resources ]] || state=ACTIVE workers+=" $cloud/worker1"
case "$1 $2 $3 $4" in
  "storage rsync --recursive"*) mkdir -p "$(at "$5")" && cp -r "$(at "$4")/." "$(at "$5")" ;;
  *describe) [[ -e $cloud/$5 ]] && echo $state ;;
  *create) [[ ! -e $cloud/$5 ]] && touch "$cloud/$5" ;;
  *delete) rm "$cloud/$5" ;;
  *scp) [[ -e $cloud/$6 || -e $cloud/${6%%:*} ]] && for w in $workers; do cp "$5" "$w/mlm_jax.tar.gz" || exit; done ;;
  *ssh)
    [[ -e $cloud/$5 ]] || exit
    [[ $command == all ]] || exit 0  # the log
    for w in $workers; do (cd "$w" && HOME=$w bash -c "$remote") || exit; done ;;
esac"""


class Clouds:
    """What the stand-ins hold, and how they were called."""

    def __init__(self, directory: pathlib.Path, stand_in, environment):
        self.directory = directory / 'cloud'
        self.modules = directory / 'modules'
        for number in range(2):
            environment(self.directory / f'worker{number}' / 'mlm_jax' / 'venv')
        job = self.directory / 'job.yaml'
        kubectl = f'case $1 in apply) [[ ! -e {job} ]] && cat >{job} ;; delete) mv {job} {job}.$RANDOM ;; esac'
        mount = (
            f'for word; do bucket=$place place=$word; done; rm -d "$place"; ln -sn {self.directory}/$bucket "$place"'
        )
        programs = {'gcloud': f'cloud={self.directory}{GCLOUD}', 'kubectl': kubectl, 'gcsfuse': mount}
        for name, body in programs.items():
            stand_in(name, f"printf '%s\\0' {name} \"$@\" $'\\x1e' >>{self.directory}/calls\n{body}")
        for name, body in {'mountpoint': 'exit 1', 'sbatch': ''}.items():
            stand_in(name, body)

    def calls(self) -> list[list[str]]:
        """The command lines so far, which are then forgotten."""
        with (self.directory / 'calls').open('a+') as file:
            file.seek(0)
            text = file.read()
            file.truncate(0)
        return [call.split('\0')[:-1] for call in text.split('\x1e\0')[:-1]]

    def started(self, count: int) -> list[list[str]]:
        """The arguments of `train` on that many workers; what was noted is then forgotten."""

        def found():
            lines = self.modules.read_text().splitlines() if self.modules.exists() else []
            return [line for line in lines if line.startswith('-m mlm_jax.train ')]

        wait_for(lambda: len(found()) == count)
        trains = [shlex.split(line)[2:] for line in found()]
        self.modules.unlink()
        return trains


def check_training(arguments: list[str]) -> ml_collections.ConfigDict:
    """The resolved configuration with which `train` is started; its flags and keys are those that there are."""
    test_docs.parse_flags('train', arguments)
    given = {a.partition('=')[0]: a.partition('=')[2] for a in arguments if a.startswith('--')}
    settings = [a.removeprefix('--set=') for a in arguments if a.startswith('--set=')]
    config = overrides.load(given['--config'], overrides.parse_settings(settings))
    assert '--distributed' in arguments and given['--workdir'].endswith(('runs/base', 'runs/large', 'runs/two'))
    return config_lib.resolve(config)


def check_slice(config, topology: str, count: int) -> None:
    """The configuration is fitted to what is created: `count` slices of a type of gcloud, or of a topology of GKE."""
    chips = math.prod(map(int, re.findall(r'\d+', topology.rpartition('-')[2])))
    assert tpu_slices.parts_of(config.slice)[0] == count and tpu_slices.size_of(config.slice)[0] == count * chips


def follow(words: list[str], clouds: Clouds, checkout: pathlib.Path) -> None:
    """Does what a command of the page says, and checks what comes of it."""
    if test_docs.is_program(words):
        name, arguments = test_docs.program_of(words)
        if name == 'prepare':
            test_docs.run_program(name, test_docs.made_tiny(name, arguments))
        else:
            test_docs.parse_flags(name, arguments)
    elif words[0] == 'gcloud':
        subprocess.run(words, check=True)
    else:
        launch(checkout, words[0].removeprefix('launch/'), *words[1:])


def test_the_way_to_a_pod_can_be_gone(tmp_path, monkeypatch, checkout, stand_in, environment):
    clouds = Clouds(tmp_path, stand_in, environment)
    environment(checkout / '.venv')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(tmp_path)
    test_docs.write('books/0.txt', '\n\n'.join(test_docs.paragraphs()))
    done, created = [], ['', 1]
    for words in commands_of('docs/hardware.md', '## Use a TPU pod, Slurm or Kubernetes'):
        follow(words, clouds, checkout)
        done.append(' '.join(word for word in words[:3] if not word.startswith('-')))
        for call in clouds.calls():
            cloud_commands.check(call)
            if call[4:5] == ['create']:
                flags = dict(word.removeprefix('--').split('=') for word in call[6:] if '=' in word)
                created = [flags['accelerator-type'], int(flags.get('node-count', 1))]
        if done[-1] == 'launch/tpu_pod run':
            for arguments in clouds.started(created[1]):
                config = check_training(arguments)
                check_slice(config, *created)
                manifest_lib.load(config.data.directory)  # on the disk of the worker, through the bucket
        elif done[-1] == 'launch/gke run':
            check_job(clouds)
    assert done == [
        *('python mlm_jax.doctor', 'python mlm_jax.doctor', 'python mlm_jax.prepare', 'gcloud storage rsync'),
        *2 * ('launch/tpu_pod up', 'launch/tpu_pod run', 'launch/tpu_pod down'),
        'launch/slurm',
        *3 * ('launch/gke run', 'launch/gke down'),
    ]
    left = {path.name for path in clouds.directory.iterdir()} - {'calls', 'worker0', 'worker1'}
    assert {name for name in left if not name.startswith('job.yaml.')} == {BUCKET}, 'what was created is deleted'


def check_job(clouds: Clouds) -> None:
    """The JobSet trains on as many slices as its configuration says, or on GPUs, with the rows in the bucket."""
    (workers,) = yaml.safe_load((clouds.directory / 'job.yaml').read_text())['spec']['replicatedJobs']
    pod = workers['template']['spec']['template']['spec']
    script = pod['containers'][0]['args'][0]
    subprocess.run(['bash', '-n', '-c', script], check=True)
    train = shlex.split(script.splitlines()[-1].replace('$JOB_COMPLETION_INDEX', '0'))
    assert train[:4] == ['exec', '/venv/bin/python', '-m', 'mlm_jax.train']
    config = check_training(train[4:])
    assert config.data.directory == f'/data/{BUCKET}/books' and config.data.block_kib
    if topology := pod['nodeSelector'].get('cloud.google.com/gke-tpu-topology'):
        check_slice(config, topology, workers['replicas'])
    else:
        assert pod['containers'][0]['resources']['limits'] == {'nvidia.com/gpu': 8} and config.accelerator == 'gpu'
    (rows,) = [v['csi'] for v in pod['volumes'] if v['name'] == 'bucket-of-rows']
    assert rows['volumeAttributes']['bucketName'] == BUCKET and rows['readOnly']
    manifest_lib.load(clouds.directory / BUCKET / 'books')


@pytest.mark.usefixtures('bucket')
def test_the_way_through_a_bucket_can_be_gone(tmp_path, monkeypatch):
    """Without a copy on a disk: rows are prepared into the bucket, and are what training would read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    text = ''.join(json.dumps({'text': paragraph}) + '\n' for paragraph in test_docs.paragraphs())
    buckets.path(f'gs://{BUCKET}/corpus/news/0.jsonl.gz').write_bytes(gzip.compress(text.encode()))
    names = []
    for words in commands_of('docs/data.md', '## Text and rows in a bucket'):
        assert test_docs.is_program(words), words
        name, arguments = test_docs.program_of(words)
        names.append(name)
        if name == 'prepare':
            test_docs.run_program(name, test_docs.made_tiny(name, arguments))
        else:
            test_docs.parse_flags(name, arguments)
        if name == 'train':
            config = next(a for a in test_docs.made_tiny(name, arguments) if a.startswith('--config='))
            data = overrides.load(config.removeprefix('--config='), {}).data
            assert prepared_data.load(data).training_rows() and data.block_kib
    assert names[:2] == ['prepare', 'train']
