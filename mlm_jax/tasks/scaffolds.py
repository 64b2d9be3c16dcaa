"""Splits of molecules by scaffold, so that a test set holds other ring systems than those trained on.

The Bemis–Murcko scaffold of a molecule is its rings and what links them (doi 10.1021/jm9602928); it has none without
rings. The assignment is that of DeepChem's ScaffoldSplitter, on which most results on MoleculeNet are reported: nothing
in it is drawn. It may depend on the version of RDKit, on what parses and which atoms are aromatic; the data sets of
`moleculenet.py` are divided alike by RDKit 2024.9 and 2026.9, although their canonical SMILES differ.
"""

import collections
from collections.abc import Sequence

from mlm_jax.data import molecules

TRAIN, VALIDATION = 0.8, 0.1


def scaffold(smiles: str) -> str | None:
    """The SMILES of the Bemis–Murcko scaffold, without stereochemistry; '' without rings; None for no molecule.

    Raises:
      ImportError: without the extra `smiles`.
    """
    molecule = molecules.parse(smiles)
    if molecule is None:
        return None
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return MurckoScaffold.MurckoScaffoldSmiles(mol=molecule, includeChirality=False)


def split(scaffolds: Sequence[str | None]) -> dict[str, list[int]]:
    """Divides molecules 80/10/10, molecules of one scaffold together.

    Scaffolds go, the most frequent first, to the training set while they fit into 80 % of the molecules, then to the
    validation set while both fit into 90 %, else to the test set; of equally frequent ones, the one that occurs later
    goes first.

    Args:
      scaffolds: of each molecule; one without any, None, counts in the shares and is in no set.

    Returns:
      The molecules of 'train', 'validation' and 'test', by their places in `scaffolds`.
    """
    groups = collections.defaultdict(list)
    for place, name in enumerate(scaffolds):
        if name is not None:
            groups[name].append(place)
    train_cutoff, validation_cutoff = TRAIN * len(scaffolds), (TRAIN + VALIDATION) * len(scaffolds)
    sets = {'train': [], 'validation': [], 'test': []}
    for group in sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True):
        if len(sets['train']) + len(group) <= train_cutoff:
            sets['train'] += group
        elif len(sets['train']) + len(sets['validation']) + len(group) <= validation_cutoff:
            sets['validation'] += group
        else:
            sets['test'] += group
    return sets
