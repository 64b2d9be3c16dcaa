"""Data sets of the Hugging Face Hub by name, read as Parquet files of one commit.

    hf:ORGANIZATION/NAME[/CONFIG][@REVISION][:SPLIT]

Without @REVISION, they are the files into which the hub itself converts each data set (its branch
refs/convert/parquet), if these hold all of it: of those above 5 GB, it converts the beginning. Otherwise, and with
@REVISION, they are the Parquet files of the repository. Which files belong to which configuration and split is said by
the directories CONFIG/SPLIT of the hub's own files; in a repository, by its README.md, or else by words in the names of
directories and files, as in CONFIG/train-00000-of-00002.parquet.

`pin` makes of a name another one with the commit, as @COMMIT, or behind a branch or a tag as @REVISION@COMMIT, which
stands in the manifest of a prepared directory; with that, the same files are read again. The bytes are those that the
hub serves for ranges of a file (`files/buckets.py`), so only the column of texts is transferred.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlm_jax.files import buckets, hub
from mlm_jax.files.errors import ConfigError, unreadable

CONVERTED = 'refs/convert/parquet'
KIND = 'parquet'  # of all files
_NAME = re.compile(rf'([^/@:]+/[^/@:]+)(?:/([^@:]+))?(?:@([^:]+?))??(?:@({hub.COMMIT.pattern}))?(?::(\w[\w.-]*))?')
# How files and directories name the splits that are used here.
_SPLITS = {'train': ('train', 'training'), 'validation': ('validation', 'valid', 'val', 'dev'), 'test': ('test',)}
_BY_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_PARTIAL = 'partial-'  # begins the directory of a split that the hub has converted in part
# A file that the hub has converted. A split has a directory for each 10,000 files; no name of a split has a hyphen.
_CONVERTED_FILE = re.compile(rf'([^/]+)/((?:{_PARTIAL})?[^/-]+)(?:-part\d)?/\d{{4}}\.parquet')
_CONTAINERS = ('data',)  # directories that name no configuration
DEFAULT = 'default'  # the configuration of a data set that has one
Splits = dict[str, list[pathlib.Path]]  # split → files
Layout = dict[str, Splits]  # configuration → split → files


@dataclasses.dataclass(frozen=True)
class Name:
    """The name of a data set, taken apart.

    Attributes:
      repository: ORGANIZATION/NAME.
      config: the configuration, or None.
      revision: a branch or a tag, or None.
      commit: the commit that is read, or None for the latest one.
      split: the split that is read alone, or None.
    """

    repository: str
    config: str | None
    revision: str | None
    commit: str | None
    split: str | None

    @property
    def place(self) -> str | None:
        """The commit, branch or tag that is read; None if that is left to the hub."""
        return self.commit or self.revision

    def __str__(self) -> str:
        """As users write it, behind hf:."""
        parts = (('/', self.config), ('@', self.revision), ('@', self.commit), (':', self.split))
        return self.repository + ''.join(sign + part for sign, part in parts if part)


def parse(text: str) -> Name:
    """Takes a name apart; nothing is read. Raises ConfigError if it is none."""
    found = _NAME.fullmatch(text)
    if not found:
        raise ConfigError(
            f'{text!r} is no name of a data set on the hub: write hf:ORGANIZATION/NAME[/CONFIG][@REVISION][:SPLIT], '
            'such as hf:Salesforce/wikitext/wikitext-103-raw-v1'
        )
    return Name(*found.groups())


def pin(text: str, stored: str, split: str | None) -> str:
    """The name with its configuration and a commit.

    Args:
      text: the name, behind hf:.
      stored: '', or the name to which it was pinned before; that is returned if it is of the same data: without asking
        the hub, if it has the same branch or tag, to whatever commit that leads now.
      split: the split if `text` names none, and if there is one of that name; None leaves the choice to `open_splits`.

    Raises:
      ConfigError: if there is no such data set, configuration, revision or split, it has no Parquet files, or the hub
        cannot be reached.
    """
    name = parse(text)
    known = parse(stored) if stored else None
    if known and _is_same(name, known):
        return stored
    commit, layout = _commit_and_layout(name)
    config = _chosen(name, layout)
    splits = layout[config]
    _check_split(name, splits)
    chosen = name.split or (split if split in splits else None)
    pinned = Name(name.repository, config, name.revision, commit, chosen)
    return stored if known and _is_same(pinned, known) else str(pinned)


def open_splits(text: str) -> dict[str, list[pathlib.Path]]:
    """The files of a pinned name: of its split, as `train`; or of `train`, and of `validation` if there is that split.

    Raises:
      ConfigError: if they cannot be listed, or there is no such configuration or split.
    """
    name = parse(text)
    layout = _layout(name.repository, name.place or '')
    splits = layout[_chosen(name, layout)]
    _check_split(name, splits)
    if name.split:
        return {'train': splits[name.split]}
    if 'train' not in splits:
        raise ConfigError(
            f'hf:{text} has no split train; it has {", ".join(splits)}. Name one, as in hf:{name}:{next(iter(splits))}'
        )
    return {split: splits[split] for split in ('train', 'validation') if split in splits}


def _is_same(name: Name, stored: Name) -> bool:
    """Whether a name can be the one that was pinned: of the same commit, or without one of the same branch or tag."""
    is_read_there = name.commit == stored.commit if name.commit else name.revision == stored.revision
    return (
        is_read_there
        and name.repository == stored.repository
        and name.config in (None, stored.config)
        and name.split in (None, stored.split)
    )


def _commit_and_layout(name: Name) -> tuple[str, Layout]:
    """The commit that is read, and what it holds."""
    cure = (
        f'on a machine that reaches it, `hf download {name.repository} --repo-type=dataset --local-dir=DIRECTORY` '
        'copies it; then name the files of each split, as in data.corpus=parquet:DIRECTORY/**/train*.parquet and '
        'data.validation_corpus=parquet:DIRECTORY/**/validation*.parquet'
    )
    find = functools.partial(hub.commit, name.repository, 'dataset', offline_cure=cure)
    if name.place is None and (converted := find(revision=CONVERTED)):
        layout = _layout(name.repository, converted)
        if layout and name.config in (None, *layout):
            splits = layout[_chosen(name, layout)]
            if not any(split.startswith(_PARTIAL) for split in splits):
                return converted, layout
    commit = find(revision=name.place)
    if commit is None:
        raise ConfigError(f'the data set {name.repository} has no revision {name.place!r}: check its name')
    layout = _layout(name.repository, commit)
    if not layout:
        raise ConfigError(
            f'the data set {name.repository} has no Parquet files at {name.place or "main"}, and the hub has not '
            'converted all of it: download it, and name the files of its training split, such as '
            'jsonl:DIRECTORY/train*.jsonl.gz'
        )
    return commit, layout


def _chosen(name: Name, layout: Mapping[str, Any]) -> str:
    """The configuration that a name means; raises ConfigError if that is not clear."""
    config = name.config or (DEFAULT if DEFAULT in layout else next(iter(layout)))
    if config not in layout or (not name.config and DEFAULT not in layout and len(layout) > 1):
        some = ', '.join(list(layout)[:20]) + ' …' * (len(layout) > 20)
        raise ConfigError(
            f'the data set {name.repository} has '
            + (f'no configuration {name.config!r}; it has {some}' if name.config else f'several configurations: {some}')
            + f'. Write hf:{name.repository}/CONFIG'
        )
    return config


def _check_split(name: Name, splits: Splits) -> None:
    """Raises ConfigError if a name has a split that is not there."""
    if name.split and name.split not in splits:
        raise ConfigError(f'hf:{name} has no split {name.split!r}; it has {", ".join(splits)}')


# ---- What a commit holds ---------------------------------------------------------------------------------------------


@functools.cache
def _layout(repository: str, commit: str) -> Layout:
    """The Parquet files of a commit, by configuration and split; {} if there are none."""
    root = buckets.path(f'hf://datasets/{repository}@{commit}')
    try:
        files = sorted(root.rglob('*.parquet'), key=str)
        card = _card(root)
    except OSError as error:
        raise unreadable(root, error) from error
    if card is None and (layout := _of_conversion(root, files)):
        return layout
    return _of_card(root, files, card or {}) or _of_names(root, files)


def _card(root: pathlib.Path) -> dict[str, Any] | None:
    """What stands between the lines `---` at the beginning of README.md; None without that file."""
    import yaml  # comes with huggingface_hub

    try:
        text = (root / 'README.md').read_bytes().decode(errors='replace')
    except FileNotFoundError:
        return None
    found = re.match(r'---\r?\n(.*?)\r?\n---', text, re.DOTALL)
    try:
        card = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        return {}
    return card if isinstance(card, dict) else {}


def _of_conversion(root: pathlib.Path, files: list[pathlib.Path]) -> Layout:
    """The layout of files that the hub has converted, whose directories are CONFIG/SPLIT; {} if others are among them.

    The hub leaves no README.md among its files, and names them as in github.com/huggingface/dataset-viewer,
    services/worker/src/worker/job_runners/config/parquet_and_info.py, `ParquetFile.path_in_repo`.
    """
    layout: Layout = {}
    for file in files:
        found = _CONVERTED_FILE.fullmatch(file.relative_to(root).as_posix())
        if not found:
            return {}
        layout.setdefault(found[1], {}).setdefault(found[2], []).append(file)
    return layout


def _of_card(root: pathlib.Path, files: list[pathlib.Path], card: Mapping[str, Any]) -> Layout:
    """The layout that the card says, as far as that is of Parquet files; {} if it says none."""
    layout: Layout = {}
    try:
        for entry in card.get('configs') or ():
            splits = _splits_of_entry(root, files, entry)
            if splits:
                layout[str(entry['config_name'])] = splits
                if entry.get('default'):
                    layout.setdefault(DEFAULT, splits)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{root}/README.md names the files of its configurations in an unknown form ({error!r}): download the data '
            'set, and name the files of its training split, as in parquet:DIRECTORY/train*.parquet'
        ) from error
    return layout


def _splits_of_entry(root: pathlib.Path, files: list[pathlib.Path], entry: Mapping[str, Any]) -> Splits:
    """The files of a configuration in a card; without `data_files`, those of its directory, by their names."""
    directory = root / entry['data_dir'] if entry.get('data_dir') else root
    found: Splits = {}
    if entry.get('data_files'):
        for split, pattern in _patterns(entry['data_files']):
            matching = set(directory.glob(pattern))
            found.setdefault(split, []).extend(file for file in files if file in matching)
    else:
        for file in files:
            if file.is_relative_to(directory):
                found.setdefault(_names_of(directory, file)[1], []).append(file)
    return {split: some for split, some in found.items() if some}


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Splits and globs, of the forms that `data_files` of a card may have; what has no split is for training."""
    if isinstance(data_files, dict) and 'path' not in data_files:
        data_files = [{'split': split, 'path': paths} for split, paths in data_files.items()]
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = (entry.get('split', 'train'), entry['path']) if isinstance(entry, dict) else ('train', entry)
        for pattern in paths if isinstance(paths, list) else [paths]:
            yield split, pattern


def _of_names(root: pathlib.Path, files: list[pathlib.Path]) -> Layout:
    """The layout that follows from the names of directories and files."""
    layout: Layout = {}
    for file in files:
        config, split = _names_of(root, file)
        layout.setdefault(config, {}).setdefault(split, []).append(file)
    return layout


def _names_of(root: pathlib.Path, file: pathlib.Path) -> tuple[str, str]:
    """The configuration and the split of a file by the names on the path to it."""
    *directories, last = file.relative_to(root).parts
    words = [_split_of(part) for part in (*directories, last)]
    named = [part for part, word in zip(directories, words) if not word and part not in _CONTAINERS]
    return '/'.join(named) or DEFAULT, next(filter(None, reversed(words)), 'train')


def _split_of(part: str) -> str:
    """The split that a directory or a file is named after; ''."""
    words = re.split(r'[^a-z]+', part.lower())
    return next((_BY_WORD[word] for word in words if word in _BY_WORD), '')
