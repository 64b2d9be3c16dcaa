"""Every command and every snippet of README.md and docs/, executed page by page in one temporary directory.

The sizes are not those of the pages: each command of this package gets further flags (`OVERRIDES`) that make models and
runs tiny, and the corpora and data sets that the pages speak of are small files made here. Programs run in this
process, which saves importing JAX for each of them. Scripts of launch/ run with --dry-run.

A block is skipped only if a comment in front of it says what it needs, such as `<!-- needs: GPU -->`; the flags of its
commands must exist nevertheless. `<!-- in: FILE -->` in front of a Python block means that it is added to that file,
and `<!-- new: FILE -->` that it is a file which there is not yet.
"""

import contextlib
import dataclasses
import gzip
import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import programs
import pytest
from absl import app, flags
from test_package import PACKAGE

from mlm_jax.config import command_line
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained import huggingface
from mlm_jax.training.state import example_batch

REPOSITORY = PACKAGE.parent
# A page may use what an earlier one has made.
PAGES = (
    'README.md', 'docs/data.md', 'docs/train.md', 'docs/interop.md', 'docs/masking.md', 'docs/evaluate.md',
    'docs/analyse.md', 'docs/hardware.md', 'docs/extend.md', 'docs/likelihood.md', 'docs/reference.md',
    'docs/results.md',
)  # fmt: skip
# Its code makes new files; tests/objectives/test_adding_an_objective.py follows it.
FOLLOWED_ELSEWHERE = ('docs/objectives.md',)
# Those of peer and tpu take half a minute; tests/performance/ and tests/parallel/test_tpu_compile.py run the same.
NEEDS = (
    'TPU', 'GPU', 'a download', 'a cluster', 'a bucket', 'two minutes', 'the extra peer', 'the extra measure',
    'the extra tpu',
)  # fmt: skip
# `needs: the extra NAME` is skipped only where one of these modules is missing.
EXTRAS = {
    'finetune': ('sklearn', 'scipy'),
    'huggingface': ('safetensors', 'tokenizers'),
    'smiles': ('rdkit', 'sklearn'),
}
DRAWN = ('mermaid',)  # languages that GitHub draws

VOCABULARY, EXTENDED_VOCABULARY = 400, 420
LENGTH, STEPS = 64, 2
CONFIGURATION = {
    'total_steps': STEPS, 'batch_size': 16, 'num_microbatches': 1, 'sequence_length': LENGTH, 'vocab_size': VOCABULARY,
    'tokenizer.byte_fallback': False, 'data.validation_percent': 20, 'model.num_layers': 1, 'model.width': 32,
    'model.num_heads': 2, 'model.ffn_width': 64, 'mae_lm.decoder_layers': 1, 'evaluation.rows': 8,
    'evaluation.every_steps': STEPS, 'checkpoint.every_steps': STEPS, 'logging.every_steps': STEPS,
    'compilation_cache': '',
}  # fmt: skip
SETTINGS = [f'--set={key}={value}' for key, value in CONFIGURATION.items()]
OVERRIDES = {
    'prepare': [*SETTINGS, '--num_workers=1'],
    'train': SETTINGS,
    'compare': [*SETTINGS, '--seeds=0', '--budget=steps'],  # so that the programs are those of docs/train.md
    'inspect_masks': [*SETTINGS, '--texts=16'],
    'doctor': SETTINGS,
    'bench': [*SETTINGS, '--rounds=1', '--steps=1'],
    'probe effective_rank': ['--rows=8'],
    'probe entropy': ['--rows=8', '--ratios=0.15'],
    'probe gradient_variance': ['--texts=3', '--draws=3'],
    'finetune': ['--seeds=1'],
}
# Words of a command that must fit the small models and data.
REPLACEMENTS = {
    'vocab_size=10000': f'vocab_size={EXTENDED_VOCABULARY}',
    '--grid=epochs=3,10': '--grid=epochs=1',
    'effective_rank,entropy': 'effective_rank,rows=8',
    '--set=max_length=384': f'--set=max_length={2 * LENGTH}',
    'runs/demo@1200': f'runs/demo@{STEPS // 2}',
    'runs/demo@1500': f'runs/demo@{STEPS}',
}


# ---- Pages and their blocks ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
      page: its path in the repository.
      line: of the page, at which its text begins.
      language: behind the opening fence.
      text: without the fences and the indentation that they share.
      needs: what the comment in front of it names, or ''.
      file: of the repository, to which it is added, or which it makes; or ''.
    """

    page: str
    line: int
    language: str
    text: str
    needs: str = ''
    file: str = ''

    def __str__(self):
        return f'{self.page}:{self.line}'


def read_blocks(page: str, text: str) -> list[Block]:
    """The blocks of a page; fails for a fence that does not close and for a command outside of fences."""
    blocks, lines, i = [], text.splitlines(), 0
    while i < len(lines):
        if opening := re.fullmatch(r'( *)```(\w*)', lines[i]):
            end = next((j for j in range(i + 1, len(lines)) if lines[j].strip() == '```'), None)
            assert end is not None, f'{page}:{i + 1}: the fence does not close'
            comment = re.fullmatch(r' *<!-- (needs|in|new): (.+) -->', lines[i - 1]) if i else None
            notes = {{'needs': 'needs'}.get(comment[1], 'file'): comment[2]} if comment else {}
            assert 'file' not in notes or (REPOSITORY / notes['file']).exists() == (comment[1] == 'in'), (
                f'{page}:{i}: "in:" names a file that there is, and "new:" one that there is not: {comment[2]}'
            )
            body = textwrap.dedent('\n'.join(lines[i + 1 : end]))
            blocks.append(Block(page, i + 2, opening[2], body, **notes))
            i = end
        else:
            assert '<!-- needs:' not in lines[i] or lines[i + 1].lstrip().startswith('```'), (
                f'{page}:{i + 1}: no block follows {lines[i]}'
            )
            assert not re.match(r'(?: {4,}|\t)(?:\$ )?(?:python3? |mlm-jax |launch/|bash |pip |pytest )', lines[i]), (
                f'{page}:{i + 1}: a command outside of a fenced block is executed by no test: {lines[i].strip()}'
            )
        i += 1
    return blocks


def read_commands(text: str) -> list[list[str]]:
    """The commands of a bash block as words, without comments and with continued lines joined."""
    return [words for line in text.replace('\\\n', ' ').splitlines() if (words := shlex.split(line, comments=True))]


def missing(block: Block) -> str:
    """What the block needs and is not here; '' if it can be executed. Fails for a need that this test does not know."""
    if not block.needs:
        return ''
    if (modules := EXTRAS.get(block.needs.removeprefix('the extra '))) and block.needs.startswith('the extra '):
        return '' if all(map(importlib.util.find_spec, modules)) else block.needs
    assert block.needs in NEEDS, f'{block}: {block.needs!r} is none of {NEEDS}, nor the extra {" or ".join(EXTRAS)}'
    return block.needs


def test_every_page_is_read():
    assert {*PAGES, *FOLLOWED_ELSEWHERE} == {
        'README.md',
        *(str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob('docs/**/*.md')),
    }
    assert len((REPOSITORY / 'README.md').read_text(encoding='utf-8').splitlines()) <= 150


def test_what_a_page_must_not_hold():
    for text, message in (
        ('```bash\nls', 'does not close'),
        ('<!-- in: mlm_jax/none.py -->\n```python\n```', 'names a file that there is'),
        ('<!-- new: mlm_jax/train.py -->\n```python\n```', 'one that there is not'),
        ('    python -m mlm_jax.train', 'outside of a fenced block'),
        ('    launch/demo', 'outside of a fenced block'),
        ('<!-- needs: GPU -->\n\n```bash\nls\n```', 'no block follows'),
    ):
        with pytest.raises(AssertionError, match=message):
            read_blocks('page', text)
    (block,) = read_blocks('page', 'Text\n\n  <!-- needs: luck -->\n  ```bash\n  a \\\n  b # c\n  ```')
    assert (block.line, read_commands(block.text)) == (5, [['a', 'b']])
    with pytest.raises(AssertionError, match="'luck' is none of"):
        missing(block)
    for text in ('```bash\nls\n```', '```\nls\n```', '```ruby\nls\n```'):
        with pytest.raises(AssertionError, match="cannot run 'ls'|a block is bash or python"):
            Site(pathlib.Path()).execute(*read_blocks('page', text), {})


def anchors(text: str) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', [*PAGES, *FOLLOWED_ELSEWHERE, 'CONTRIBUTING.md'])
def test_links_lead_somewhere(page):
    text = (REPOSITORY / page).read_text(encoding='utf-8')
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('https://', 'http://')):
            continue
        path, _, anchor = target.partition('#')
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert file.exists(), f'{page}: {target} does not exist'
        assert not anchor or anchor in anchors(file.read_text(encoding='utf-8')), f'{page}: {target} is no heading'


# ---- Executing them --------------------------------------------------------------------------------------------------


def run_program(name: str, arguments: list[str]) -> None:
    """Runs a program of this package; fails where it fails."""
    end = programs.run(name, *arguments)
    print(end.stdout)
    assert not end.returncode, f'mlm-jax {name} {shlex.join(arguments)}\n{end.stderr}'


def parse_flags(name: str, arguments: list[str]) -> None:
    """Parses the command line of a program, and runs nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, 'run', lambda main, flags_parser: _parse(flags_parser))
        run_program(name, arguments)


def _parse(flags_parser) -> None:
    flags_parser(sys.argv)
    if 'config' in flags.FLAGS and flags.FLAGS.config:  # compare --join takes none
        command_line.configurations()


def is_program(words: list[str]) -> bool:
    """Whether a command is one of the programs of this package."""
    return words[0] == 'mlm-jax' or (words[:2] == ['python', '-m'] and words[2].startswith('mlm_jax.'))


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """The name of the program that a command runs, and its arguments."""
    return (words[1], words[2:]) if words[0] == 'mlm-jax' else (words[2].removeprefix('mlm_jax.'), words[3:])


def made_tiny(name: str, arguments: list[str]) -> list[str]:
    """The arguments with those that make the run tiny."""
    text = '\n'.join(arguments)
    for old, new in REPLACEMENTS.items():
        text = text.replace(old, new)
    arguments = text.splitlines()
    key = ' '.join([name, *arguments[:1]]) if name == 'probe' else name
    if name == 'finetune' and '--grid=epochs' not in text:
        arguments = [*arguments, '--set=epochs=1']
    # The last one counts; these sizes of a vocabulary are given by other things.
    given = re.search(r'configs/smiles\.py|vocab_size=420', text)
    left_out = ['vocab_size='] * bool(given)
    if name == 'prepare' and re.search(r'configs/smiles\.py|tokenizer\.model=(?!extend:)|continue:', text):
        left_out.append('tokenizer.byte_fallback=')  # which only training a SentencePiece tokenizer reads
    return arguments + [o for o in OVERRIDES.get(key, []) if not o.startswith(tuple(f'--set={k}' for k in left_out))]


class Site:
    """The pages, executed in one directory, each of them once."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self._done: set[str] = set()

    def run(self, page: str) -> list[str]:
        """Executes the page, after those before it; returns what its skipped blocks need."""
        for earlier in PAGES[: PAGES.index(page)]:
            if earlier not in self._done:
                self.run(earlier)
        self._done.add(page)
        skipped, namespace = [], {'__name__': 'page'}
        with restored_registries():
            for block in read_blocks(page, (REPOSITORY / page).read_text(encoding='utf-8')):
                if what := missing(block):
                    skipped.append(f'{block} needs {what}')
                    self._check(block)
                else:
                    self.execute(block, namespace)
        return skipped

    def execute(self, block: Block, namespace: dict) -> None:
        """Executes a block; Python goes on in `namespace`, or in that of its file."""
        if block.language == 'python':
            code = compile('\n' * (block.line - 1) + block.text, str(REPOSITORY / block.page), 'exec')
            exec(code, vars(module_of(block.file)) if block.file else namespace)
        elif block.language == 'bash':
            for words in read_commands(block.text):
                try:
                    self._run_command(words)
                except BaseException as error:
                    error.add_note(f'{block}: {shlex.join(words)}')
                    raise
        else:
            assert block.language in DRAWN, f'{block}: a block is bash or python; this is {block.language!r}'

    def _run_command(self, words: list[str]) -> None:
        if is_program(words):
            name, arguments = program_of(words)
            run_program(name, made_tiny(name, arguments))
        elif words[:3] == ['python', '-m', 'pytest']:  # what this suite runs
            assert all((REPOSITORY / word).exists() for word in words[3:]), words
        elif words[0].startswith('launch/'):
            more = ['--cuda=12'] if words[0] == 'launch/gpu_local' else []  # or nvidia-smi is asked
            command = [str(REPOSITORY / words[0]), '--dry-run', *words[1:], *more]
            result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            assert result.returncode == 0 and result.stdout, result.stderr
        else:
            raise AssertionError(f'this test cannot run {words[0]!r}; say what the block needs')

    def _check(self, block: Block) -> None:
        """Of a block that is skipped: the flags of its programs, and the programs of launch/."""
        if block.language != 'bash' or '$' in block.text:
            return
        for words in read_commands(block.text):
            if is_program(words):
                name, arguments = program_of(words)
                parse_flags(name, [argument for argument in arguments if argument != '…'])


def module_of(file: str):
    """The module of a file in the repository; of one that there is not, a module that is empty at first."""
    name = file.removesuffix('.py').replace('/', '.')
    if not (REPOSITORY / file).exists():
        return sys.modules.setdefault(name, types.ModuleType(name))
    return importlib.import_module(name)


@contextlib.contextmanager
def restored_registries():
    """Takes back what blocks add to modules of this package."""
    files = {
        block.file
        for page in PAGES
        for block in read_blocks(page, (REPOSITORY / page).read_text(encoding='utf-8'))
        if block.file
    }
    before = [(vars(module_of(file)), dict(vars(module_of(file)))) for file in files]
    contents = [(value, dict(value)) for _, old in before for value in old.values() if type(value) is dict]
    try:
        yield
    finally:
        for now, old in [*before, *contents]:
            now.clear()
            now.update(old)
        for file in files:
            if not (REPOSITORY / file).exists():
                del sys.modules[module_of(file).__name__]


# ---- What the pages say is there -------------------------------------------------------------------------------------

MOLECULES = ('CCO', 'c1ccccc1O', 'CC(=O)O', 'C1CCCCC1N', 'CCN(CC)CC', 'c1ccncc1', 'C1CC1', 'OCC(O)CO', 'CC(C)C', 'CCCl')


def write(path: str, *lines: str) -> None:
    """A text file below the current directory; its name may end in .gz."""
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    data = ('\n'.join(lines) + '\n').encode()
    file.write_bytes(gzip.compress(data) if file.suffix == '.gz' else data)


def paragraphs() -> list[str]:
    """English text: that of the pages themselves."""
    text = '\n\n'.join((REPOSITORY / page).read_text(encoding='utf-8') for page in PAGES)
    prose = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    return [' '.join(p.split()) for p in prose.split('\n\n') if len(p) > 80 and p.lstrip()[0].isalpha()]


def write_corpora() -> None:
    """Corpora in the forms that the pages name."""
    text = paragraphs()
    halves = '\n\n'.join(text[::2]), '\n\n'.join(text[1::2])
    for place, half in (('corpus/part0.txt.gz', 0), ('corpus/part1.txt.gz', 1), ('law/0.txt', 1), ('books/0.txt', 0)):
        write(place, halves[half])
    write('corpus/a,b.txt', halves[0])
    write('corpus/c.txt', halves[1])
    write('smiles/molecules.smi', *(a + b for a in MOLECULES for b in ('C', 'CC', 'CCC', 'CCCC', 'N', 'O')))


def write_tasks() -> None:
    """GLUE, a task of one's own, SQuAD, MoleculeNet and BLiMP, in their published forms."""
    text = [paragraph[:60].replace('"', '') for paragraph in paragraphs()][:32]
    for split, some in (('train', text[:24]), ('dev', text[24:]), ('test', text[24:])):
        label = split != 'test'
        sst2 = [f'{t}\t{i % 2}' if label else f'{i}\t{t}' for i, t in enumerate(some)]
        write(f'data/glue/SST-2/{split}.tsv', 'sentence\tlabel' if label else 'index\tsentence', *sst2)
        names = ('entailment', 'not_entailment')
        rte = [f'{i}\t{t}\t{t[:20]}' + f'\t{names[i % 2]}' * label for i, t in enumerate(some)]
        write(f'data/glue/RTE/{split}.tsv', 'index\tsentence1\tsentence2' + '\tlabel' * label, *rte)
    mails = [f'"{t[:20]}","{t}",{("work", "private")[i % 2]}' for i, t in enumerate(text)]
    write('mails.csv', 'subject,body,folder', *mails)
    for split in ('train', 'dev'):
        questions = [
            dict(
                id=f'{split}{i}',
                question='Which word is it?',
                answers=[dict(text=t.split()[1], answer_start=len(t.split()[0]) + 1)],
            )
            for i, t in enumerate(text[:8])
        ]
        contexts = [dict(context=t, qas=[question]) for t, question in zip(text, questions, strict=False)]
        squad = dict(version='1.1', data=[dict(title='a', paragraphs=contexts)])
        write(f'data/squad/{split}-v1.1.json', json.dumps(squad))
    rows = [f'name{i},{i % 2},{molecule}' for i, molecule in enumerate(np.repeat(MOLECULES, 4))]
    write('data/moleculenet/BBBP.csv', 'name,p_np,smiles', *rows)
    target = 'measured log solubility in mols per litre'
    write('data/moleculenet/delaney-processed.csv', f'Compound ID,{target},smiles', *rows)
    pair = dict(sentence_good='he is here.', sentence_bad='he are here.', field='syntax', linguistics_term='agreement')
    write('blimp/data/agreement.jsonl', *(json.dumps(pair | dict(UID='agreement')) for _ in range(4)))


def write_bert() -> None:
    """A BERT with random weights, and a tokenizer of its own."""
    hub = pytest.importorskip('tokenizers')
    tokenizer = hub.Tokenizer(hub.models.WordPiece(unk_token='[UNK]'))
    tokenizer.normalizer = hub.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = hub.pre_tokenizers.BertPreTokenizer()
    specials = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    trainer = hub.trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(paragraphs(), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    encoder = EncoderConfig(VOCABULARY, LENGTH, num_layers=1, width=32, num_heads=2, ffn_width=64, norm_epsilon=1e-12)
    shapes = jax.eval_shape(MLM(encoder).init, jax.random.key(0), example_batch(LENGTH, 4))['params']
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0.0, 0.02, x.shape).astype(np.float32), shapes)
    huggingface.to_hf(encoder, params, 'bert-base-uncased')
    tokenizer.save('bert-base-uncased/tokenizer.json')


def train_demo() -> None:
    """What `launch/demo` leaves, on another text."""
    demo = ['--config=configs/demo.py', '--set=data.corpus=text:corpus/*.txt.gz']
    run_program('prepare', made_tiny('prepare', demo))
    often = f'--set=checkpoint.every_steps={STEPS // 2}'
    run_program('train', [*made_tiny('train', [*demo, '--workdir=runs/demo']), often])


@pytest.fixture(scope='module')
def site(tmp_path_factory, one_device):
    """The pages, in a directory that holds what they say is there."""
    directory = tmp_path_factory.mktemp('site')
    for name in ('configs', 'launch', 'mlm_jax'):
        (directory / name).symlink_to(REPOSITORY / name)
    with contextlib.chdir(directory):
        write_corpora()
        write_tasks()
        write_bert()
        train_demo()
        yield Site(directory)


@pytest.mark.parametrize('page', PAGES)
def test_page(page, site):
    if skipped := site.run(page):
        print('\n'.join(skipped))
