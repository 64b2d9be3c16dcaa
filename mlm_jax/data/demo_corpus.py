"""English prose from the Python installation: a corpus that needs no download.

The sources are the Python reference (`pydoc_data.topics`), the docstrings and comments of the standard library, and the
docstrings and descriptions of the libraries that this package depends on. Source files are parsed, never imported. A
document is the prose of one file or description, in its order. Code, doctests, tables, lists of parameters, markup,
licenses and repeated paragraphs are dropped; `_is_prose` decides what reads as English.

The text depends only on the versions of Python and of these libraries, not on other installed packages.
"""

import ast
import inspect
import pathlib
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

# The direct dependencies of this package; their own dependencies are included too.
DISTRIBUTIONS = (
    'absl-py', 'array-record', 'flax', 'grain', 'jax', 'matplotlib', 'ml-collections', 'numpy', 'optax',
    'orbax-checkpoint', 'sentencepiece', 'tensorflow-datasets', 'tqdm',
)  # fmt: skip

_SKIPPED_FOLDERS = frozenset(
    (
        'test',
        'tests',
        'testing',
        'idle_test',
        'site-packages',
        'dist-packages',
        '__pycache__',
        'encodings',
        '_vendor',
        'mlir',
        'lexers',
    )  # the last folders hold tables and generated code
)
_MIN_WORDS = 8
_SHINGLE = 6  # words; a paragraph is a repetition if more than half of its shingles have been seen before
_STOP_WORDS = frozenset(
    [
        'a',
        'an',
        'and',
        'any',
        'are',
        'as',
        'at',
        'be',
        'because',
        'been',
        'but',
        'by',
        'can',
        'cannot',
        'could',
        'does',
        'each',
        'for',
        'from',
        'had',
        'has',
        'have',
        'he',
        'how',
        'if',
        'in',
        'into',
        'is',
        'it',
        'its',
        'like',
        'may',
        'might',
        'more',
        'most',
        'must',
        'no',
        'not',
        'of',
        'on',
        'one',
        'only',
        'or',
        'other',
        'our',
        'same',
        'should',
        'so',
        'some',
        'such',
        'than',
        'that',
        'the',
        'their',
        'them',
        'then',
        'there',
        'these',
        'they',
        'this',
        'those',
        'to',
        'two',
        'up',
        'us',
        'use',
        'used',
        'using',
        'was',
        'we',
        'were',
        'what',
        'when',
        'where',
        'which',
        'while',
        'who',
        'will',
        'with',
        'without',
        'would',
        'you',
        'your',
    ]
)
_BOILERPLATE = re.compile(
    r'copyright|licen[cs]e|permission is|redistribut|warrant|all rights reserved|the above notice|merchantab|'
    r'auto-?generated|do not edit|pylint|pytype|mypy|noqa|TODO|FIXME|XXX|type: ignore|fmt: o|'
    r'docstring inherited',
    re.IGNORECASE,
)
_HEADINGS = re.compile(
    r'(args|arguments|parameters|returns?|yields?|raises?|attributes?|examples?|notes?|references|'
    r'see also|keyword args|'
    r'warnings?|usage|other parameters|warns|methods|example usage|side effects|throws)\s*:*', re.IGNORECASE
)  # fmt: skip
_ENTRY = re.compile(r'^\s*(?:[-*+•]|\(?\d+[.)])\s+')  # a list item
_PARAMETER = re.compile(r'\*{0,2}[\w.`]+(?: \([^)]*\))?: +')  # "name (type): "
_CODE_LINE = re.compile(
    r'\s*(?:>>>|\.\.\. |\$ |@|#|\||\+-|=+\s*$|-{3,}|~{3,}|\^{3,}|\.\. |```|import |from \w+ import|'
    r':(?:param|type|returns?|rtype|raises|keyword|arg|[ic]?var|author|copyright|license)[^:`]*:)'
)
_MARKUP = (
    (re.compile(r'!\[[^\]]*\]\([^)]*\)|<[^<>\s]+@[^<>\s]+>|<https?:[^>]*>'), ''),  # images, addresses
    (re.compile(r'\[([^\]]+)\]\([^)]*\)'), r'\1'),  # Markdown links
    (re.compile(r'\[\d+\]_'), ''),  # rst references
    (re.compile(r'`([^`<]+?)\s*<[^`>]*>`_{0,2}'), r'\1'),  # rst links
    (re.compile(r':[\w:+-]+:`~?!?([^`]*)`'), r'\1'),  # rst roles
    (re.compile(r'`{1,2}([^`]*)`{1,2}_{0,2}'), r'\1'),
    (re.compile(r'(?<![\w*])\*{1,3}([^*\s](?:[^*]*[^*\s])?)\*{1,3}(?![\w*])'), r'\1'),
)
_MARKED = re.compile(r'[`*\[<]')
_HOLE = re.compile(r' [.,;:!?)](?:\s|$)|\(\)(?!\w)\s*\(|``|\( ')  # a gap where markup was removed
_WORD = re.compile(
    r"[\"'“‘(]*[A-Za-z][a-z]*(?:['’-][A-Za-z]?[a-z]*)*[\"'”’)]*[.,;:!?]*[\"'”’)]*|[A-Z]{2,5}s?[.,;:!?)]*|--|[–—]|\d+[.,;:]?"
)
_SYMBOLS = re.compile(r'[=_{}\[\]<>\\/|@#$%^*~`+]')


def documents() -> Iterator[str]:
    """The documents, always in the same order; blank lines separate the paragraphs of a document."""
    seen: set[str] = set()
    for blocks in _sources():
        paragraphs = [p for block in blocks for p in paragraphs_of(block)]
        fresh = [p for p in paragraphs if not _is_repetition(p, seen)]
        if sum(len(p.split()) for p in fresh) >= 3 * _MIN_WORDS:
            yield '\n\n'.join(fresh)


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs of a docstring, comment or description that read as English, each as one line."""
    found = []
    for block in re.split(r'\n\s*\n', inspect.cleandoc(text)):
        lines = block.split('\n')
        prose = [line for line in lines if not _CODE_LINE.match(line)]
        if 2 * len(prose) >= len(lines):
            long = (p for p in _join(prose) if p.count(' ') >= _MIN_WORDS)
            found += [p for p in map(_clean, long) if _is_prose(p)]
    return found


def _join(lines: Iterable[str]) -> list[str]:
    """Joins lines to paragraphs; a list item, or a line with less indentation than the last, starts a paragraph."""
    paragraphs, indent = [], None
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if _HEADINGS.fullmatch(line.strip()):
            indent = None
            continue
        is_parameter = indent is not None and paragraphs[-1].endswith('.') and _PARAMETER.match(line.strip())
        if indent is None or depth < indent or _ENTRY.match(line) or is_parameter:
            paragraphs.append('')
        elif depth > indent and len(paragraphs[-1].split()) <= 5:
            paragraphs[-1] = ''  # drops the name of the parameter that is explained here
        indent = depth
        text = _ENTRY.sub('', line).strip()
        paragraphs[-1] += f' {text}' if paragraphs[-1] else _PARAMETER.sub('', text, count=1)
    return paragraphs


def _clean(paragraph: str) -> str:
    if _MARKED.search(paragraph):
        for pattern, replacement in _MARKUP:
            paragraph = pattern.sub(replacement, paragraph)
    return ' '.join(paragraph.split()).removesuffix('::').rstrip()


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    if len(words) < _MIN_WORDS or (not paragraph[0].isupper() and paragraph[0] not in '"“('):
        return False
    if paragraph[-1] not in '.!?:")”' or _HOLE.search(paragraph) or 'http' in paragraph:
        return False
    if _BOILERPLATE.search(paragraph):
        return False
    plain = sum(bool(_WORD.fullmatch(word)) for word in words)
    stop = sum(word.lower().strip('.,;:()"') in _STOP_WORDS for word in words)
    return (
        plain >= 0.8 * len(words)
        and stop >= 0.25 * len(words)
        and len(_SYMBOLS.findall(paragraph)) <= 0.015 * len(paragraph)
    )


def _is_repetition(paragraph: str, seen: set[str]) -> bool:
    """Whether most of a paragraph has been seen before; adds the paragraph to `seen`."""
    words = re.findall('[a-z]+', paragraph.lower())
    shingles = {' '.join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
    known = len(shingles & seen)
    seen |= shingles
    return 2 * known > len(shingles)


# ---- Sources of prose ------------------------------------------------------------


def _sources() -> Iterator[list[str]]:
    """Yields for each document its docstrings, comments or description, as they are written."""
    library = pathlib.Path(sysconfig.get_path('stdlib'))
    yield from ([topic] for _, topic in sorted(_topics(library).items()))
    for path in _python_files(library):
        yield _blocks(path)
    for distribution in _distributions():
        yield [distribution.metadata.get_payload() or distribution.metadata.get('Description', '')]
        for path in _distribution_files(distribution):
            yield _blocks(path)


def _topics(library: pathlib.Path) -> dict[str, str]:
    tree = ast.parse((library / 'pydoc_data' / 'topics.py').read_bytes())
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))


def _python_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = (p for p in folder.rglob('*.py') if not _SKIPPED_FOLDERS & set(p.relative_to(folder).parts))
    return sorted(p for p in files if p.name != 'topics.py')


def _distributions() -> list[metadata.Distribution]:
    """The installed distributions on which this package depends, directly or indirectly, sorted by name."""
    found: dict[str, metadata.Distribution] = {}
    names = list(DISTRIBUTIONS)
    while names:
        name = re.sub(r'[-_.]+', '-', names.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed only on other systems
        requirements = [r for r in found[name].requires or () if 'extra ==' not in r]
        names += [match[0] for r in requirements if (match := re.match(r'[\w.-]+', r))]
    return [found[name] for name in sorted(found)]


def _distribution_files(distribution: metadata.Distribution) -> list[pathlib.Path]:
    listed = (f for f in distribution.files or () if f.suffix == '.py' and not _SKIPPED_FOLDERS & set(f.parts))
    kept = (f for f in sorted(listed) if not re.search(r'(^|_)(test|pb2)(_|\.)', f.name))
    return [path for path in (pathlib.Path(f.locate()) for f in kept) if path.is_file()]


def _blocks(path: pathlib.Path) -> list[str]:
    """The docstrings and comments of a source file, in order."""
    source = path.read_text(encoding='utf-8', errors='replace')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about invalid escapes in strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []  # a template, or a file for another version of Python
    blocks = [*_docstrings(tree), *_comments(source)]
    return [text for _, text in sorted(blocks)]


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes: list[Any] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, kinds) and node.body and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text
        nodes += [n for n in getattr(node, 'body', ()) if isinstance(n, (*kinds, ast.If, ast.Try))]


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields the blocks of whole-line comments, each with its first line number."""
    block: list[str] = []
    first = 0
    for number, line in enumerate((*source.split('\n'), ''), start=1):
        text = line.strip()
        if text.startswith('#') and not text.startswith(('#!', '#:')):
            first = first or number
            block.append(text.lstrip('#').removeprefix(' '))
        elif block:
            yield first, '\n'.join(block)
            block, first = [], 0
