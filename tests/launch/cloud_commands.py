"""The flags of the commands of clouds that launch/ and the pages call: a typo of a flag is found where no cloud is.

From the published references: of gcloud (docs.cloud.google.com/sdk/gcloud/reference), of gcsfuse
(cloud.google.com/storage/docs/gcsfuse-cli), and of kubectl (kubernetes.io/docs/reference/kubectl). Of the flags of a
command, those are listed that somebody might use here.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command takes.

    Attributes:
      words: how many arguments are no flags.
      values: flags that take a value, as in --zone=us-west4-a.
      bare: flags that take none.
    """

    words: int
    values: str = ''
    bare: str = ''


_OF_GCLOUD = Command(0, 'project format account verbosity', 'quiet')
_SSH = 'worker zone command ssh-flag ssh-key-file output-directory'
_SCP = 'worker zone scp-flag ssh-key-file'
_NODES = 'zone accelerator-type topology type network subnetwork service-account labels metadata reservation'
KNOWN = {
    'gcloud compute tpus tpu-vm create': Command(1, f'{_NODES} version', 'spot reserved async internal-ips'),
    'gcloud compute tpus tpu-vm delete': Command(1, 'zone', 'async'),
    'gcloud compute tpus tpu-vm describe': Command(1, 'zone'),
    'gcloud compute tpus tpu-vm start': Command(1, 'zone', 'async'),
    'gcloud compute tpus tpu-vm ssh': Command(1, _SSH, 'internal-ip'),
    'gcloud compute tpus tpu-vm scp': Command(2, _SCP, 'compress recurse internal-ip tunnel-through-iap'),
    'gcloud compute tpus queued-resources create': Command(
        1, f'{_NODES} runtime-version node-id node-count node-prefix', 'spot reserved guaranteed async internal-ips'
    ),
    'gcloud compute tpus queued-resources delete': Command(1, 'zone', 'async force'),
    'gcloud compute tpus queued-resources describe': Command(1, 'zone'),
    'gcloud compute tpus queued-resources ssh': Command(1, f'{_SSH} node batch-size', 'internal-ip tunnel-through-iap'),
    'gcloud compute tpus queued-resources scp': Command(
        2, f'{_SCP} node batch-size', 'compress recurse internal-ip tunnel-through-iap'
    ),
    'gcloud storage rsync': Command(2, 'exclude', 'recursive checksums-only delete-unmatched-destination-objects'),
    'gcsfuse': Command(
        2, 'metadata-cache-ttl-secs rename-dir-limit cache-dir file-cache-max-size-mb',
        'implicit-dirs file-cache-cache-file-for-range-read',
    ),
    'kubectl apply': Command(0, 'namespace filename'),
    'kubectl delete': Command(2, 'namespace', 'ignore-not-found'),
    'kubectl logs': Command(0, 'namespace selector container tail', 'follow'),
}  # fmt: skip

# Flag → what its values look like.
VALUES = {
    'zone': r'[a-z]+-[a-z]+\d-[a-z]',
    'accelerator-type': r'v(2|3|4|5litepod|5p|6e)-\d+',
    'worker': r'\d+|all',
    'node': r'\d+|all',
    'node-count': r'\d+',
    'node-id': r'[a-z][-a-z0-9]*',
    'node-prefix': r'[a-z][-a-z0-9]*',
    'version': r'tpu-ubuntu2204-base|v2-alpha-tpuv[-0-9a-z]+',
    'runtime-version': r'tpu-ubuntu2204-base|v2-alpha-tpuv[-0-9a-z]+',
    'format': r'value\([a-z.]+\)',
    'tail': r'\d+',
}


def check(arguments: Sequence[str]) -> None:
    """Fails for a command line with a command, a flag, a value or a number of words that the references do not know."""
    line = ' '.join(arguments)
    name = max((known for known in KNOWN if line.startswith(f'{known} ')), key=len, default=None)
    assert name, f'no such command is known: {line}'
    command, words, rest = KNOWN[name], 0, list(arguments[len(name.split()) :])
    of_all = _OF_GCLOUD if name.startswith('gcloud') else Command(0)
    values, bare = (f'{command.values} {of_all.values}'.split(), f'{command.bare} {of_all.bare}'.split())
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.removeprefix('--').partition('=')
        if word == '-o' and name == 'gcsfuse':
            assert rest.pop(0) in ('ro', 'allow_other'), line
        elif not word.startswith('-'):
            words += 1
        else:
            assert word.startswith('--') and flag in (values if equals else bare), f'{name} has no {word}: {line}'
            assert not equals or re.fullmatch(VALUES.get(flag, '.+'), value, re.DOTALL), f'{word} is no value: {line}'
    assert words == command.words, f'{name} takes {command.words} arguments: {line}'


def check_printed(text: str) -> int:
    """Checks the commands of clouds that a dry run has printed, as lines that begin with '+ '; returns how many."""
    printed = re.findall(r"^\+ ((?:gcloud|gcsfuse|kubectl) .*?)(?: <<'END')?$", text, re.MULTILINE)
    for command in printed:
        check(shlex.split(command))
    return len(printed)
