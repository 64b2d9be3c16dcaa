"""MoleculeNet (arXiv 1703.00564): properties of molecules, from the CSV files that DeepChem publishes.

There are eleven data sets. BBBP, BACE, ClinTox, Tox21, ToxCast, SIDER, HIV and MUV have binary targets, with the area
under the ROC curve as their metric; ESOL, FreeSolv and Lipophilicity are regressions, with the root mean square error
as their metric. The files are read from a directory, compressed or not, and divided 80/10/10 by scaffold
(`scaffolds.py`).

As in DeepChem, SMILES that RDKit cannot parse are dropped before the division, and counted. Duplicate molecules are
kept. The text of an example is RDKit's canonical SMILES, as in most corpora, because some files write aromatic rings
with double bonds. Needs the extra `smiles`.

The recipes are those of Uni-Mol (github.com/deepmodeling/Uni-Mol), also for the regressions. Its protocol is to use the
best epoch on the validation set, to stop after 20 epochs without improvement, and to report the mean and the standard
deviation over three seeds.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping

from mlm_jax.data import molecules
from mlm_jax.files import buckets, records
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks import scaffolds
from mlm_jax.tasks.examples import Example, Task, TaskData, number, yes_or_no

SUITE = 'moleculenet'


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set of MoleculeNet.

    Attributes:
      file: the name of its file, which may have the additional suffix .gz, .bz2, .xz or .zst.
      kind: as in `Task`.
      recipe: the recipe of Uni-Mol; its dropout applies to the head.
      targets: the columns with targets; if empty, all columns except `smiles` and `mol_id`.
      num_targets: the number of targets.
      smiles: the column with the SMILES.
      aliases: the name of a column in other editions of the file → its name here.
    """

    file: str
    kind: str
    recipe: Mapping[str, int | float]
    targets: tuple[str, ...] = ()
    num_targets: int = 1
    smiles: str = 'smiles'
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _recipe(
    learning_rate: float, batch_size: int, epochs: int, head_dropout: float, warmup_percent: float = 6.0
) -> dict[str, int | float]:
    return dict(
        learning_rate=learning_rate, batch_size=batch_size, epochs=epochs, head_dropout=head_dropout,
        warmup_percent=warmup_percent, b2=0.99, weight_decay=0.0, patience=20,
    )  # fmt: skip


TOX21_TARGETS = (
    'NR-AR', 'NR-AR-LBD', 'NR-AhR', 'NR-Aromatase', 'NR-ER', 'NR-ER-LBD', 'NR-PPAR-gamma', 'SR-ARE', 'SR-ATAD5',
    'SR-HSE', 'SR-MMP', 'SR-p53',
)  # fmt: skip
MUV_TARGETS = tuple(
    f'MUV-{assay}'
    for assay in (466, 548, 600, 644, 652, 689, 692, 712, 713, 733, 737, 810, 832, 846, 852, 858, 859)
)  # fmt: skip
ESOL_TARGET = 'measured log solubility in mols per litre'

DATA_SETS: dict[str, DataSet] = {
    'bbbp': DataSet('BBBP.csv', 'multilabel', _recipe(4e-4, 128, 40, 0.0), ('p_np',), aliases={'BBBP': 'p_np'}),
    'bace': DataSet('bace.csv', 'multilabel', _recipe(1e-4, 64, 60, 0.1), ('Class',), smiles='mol'),
    'clintox': DataSet('clintox.csv', 'multilabel', _recipe(5e-5, 256, 100, 0.5, 10.0), ('FDA_APPROVED', 'CT_TOX'), 2),
    'tox21': DataSet('tox21.csv', 'multilabel', _recipe(1e-4, 128, 80, 0.1), TOX21_TARGETS, 12),
    'toxcast': DataSet('toxcast_data.csv', 'multilabel', _recipe(1e-4, 64, 80, 0.1), num_targets=617),
    'sider': DataSet('sider.csv', 'multilabel', _recipe(5e-4, 32, 80, 0.0, 10.0), num_targets=27),
    'hiv': DataSet('HIV.csv', 'multilabel', _recipe(5e-5, 256, 5, 0.2, 10.0), ('HIV_active',)),
    'muv': DataSet('muv.csv', 'multilabel', _recipe(2e-5, 128, 40, 0.0, 0.0), MUV_TARGETS, 17),
    'esol': DataSet('delaney-processed.csv', 'regression', _recipe(5e-4, 256, 100, 0.2), (ESOL_TARGET,)),
    'freesolv': DataSet('SAMPL.csv', 'regression', _recipe(8e-5, 64, 60, 0.2, 10.0), ('expt',)),
    'lipophilicity': DataSet('Lipophilicity.csv', 'regression', _recipe(1e-4, 32, 80, 0.1), ('exp',)),
}
METRICS = {
    'multilabel': ('roc_auc',),
    'regression': ('rmse',),
}  # roc_auc is the mean over the targets with both classes
_MISSING = ('nan', 'NaN', 'NA')


def read(name: str, directory: str | pathlib.Path) -> TaskData[Example]:
    """Reads a data set and divides it by scaffold.

    Args:
      name: a key of `DATA_SETS`, in upper or lower case.
      directory: the directory that holds its file.

    Returns:
      The task `moleculenet/<name>` with the splits train, validation and test. The id of an example is the number of
      its record in the file, from 0. Targets are 0 or 1, or values in the units of the file; NaN means missing.

    Raises:
      ConfigError: if the name is unknown, or the file is missing, is not the right one, or has invalid targets.
      ImportError: without the extra `smiles`.
    """
    name = name.lower()
    if name not in DATA_SETS:
        raise ConfigError(f'MoleculeNet has no data set {name!r}; its data sets are {", ".join(DATA_SETS)}')
    data_set = DATA_SETS[name]
    path = _find(data_set.file, buckets.path(directory).expanduser())
    rows = [
        (f'line {line} of {path}', {data_set.aliases.get(column, column): cell.strip() for column, cell in row.items()})
        for line, row in records.read(path)
    ]
    if not rows:
        raise ConfigError(f'{path} holds no molecules')
    targets = _target_columns(name, path, list(rows[0][1]))
    as_number = number if data_set.kind == 'regression' else yes_or_no
    examples: list[Example] = []
    skeletons: list[str | None] = []
    notes: collections.Counter[str] = collections.Counter()
    for index, (where, row) in enumerate(rows):
        smiles = row[data_set.smiles]
        values = tuple(as_number('' if row[t] in _MISSING else row[t], f'{where}, {t}') for t in targets)
        canonical = molecules.canonical(smiles) if smiles else None
        if canonical is None:
            notes['SMILES that RDKit cannot parse, dropped' if smiles else 'records without SMILES, dropped'] += 1
            continue
        examples.append(Example(str(index), (canonical,), values))
        skeletons.append(scaffolds.scaffold(smiles))
    if not examples:
        raise ConfigError(f'{path} holds no molecules: it has a header and {sum(notes.values())} unusable records')
    task = Task(f'{SUITE}/{name}', data_set.kind, targets, METRICS[data_set.kind], data_set.recipe)
    splits = {split: tuple(examples[i] for i in places) for split, places in scaffolds.split(skeletons).items()}
    return TaskData(task, splits, dict(notes))


def _find(file: str, directory: pathlib.Path) -> pathlib.Path:
    for suffix in ('', '.gz', '.bz2', '.xz', '.zst'):
        path = directory / f'{file}{suffix}'
        if path.is_file():
            return path
    if not directory.is_dir():
        raise ConfigError(f'the directory {directory} does not exist; it should hold the file {file} of MoleculeNet')
    found = sorted(path.name for path in directory.iterdir())
    raise ConfigError(
        f'{directory} has neither {file} nor {file}.gz; it holds {", ".join(found[:12]) or "nothing"}'
        f'{" …" * (len(found) > 12)}. DeepChem publishes the files of MoleculeNet'
    )


def _target_columns(name: str, path: pathlib.Path, header: list[str]) -> tuple[str, ...]:
    data_set = DATA_SETS[name]
    targets = data_set.targets or tuple(column for column in header if column not in (data_set.smiles, 'mol_id'))
    missing = [column for column in (data_set.smiles, *targets) if column not in header]
    found = f'its columns are {", ".join(header[:20]) or "none"}{" …" * (len(header) > 20)}'
    if missing:
        raise ConfigError(f'{path} is not the file of {name}: it has no column {", ".join(missing)}; {found}')
    if len(targets) != data_set.num_targets:
        raise ConfigError(
            f'{path} is not the file of {name}, which has {data_set.num_targets} targets beside '
            f'{data_set.smiles}, not {len(targets)}; {found}'
        )
    return targets
