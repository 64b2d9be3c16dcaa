"""Splits molecules by scaffold, so that the test set has ring systems that do not occur in the training set.

The Bemis–Murcko scaffold of a molecule consists of its rings and their linkers (doi 10.1021/jm9602928); a molecule
without rings has an empty scaffold. The splits are those of DeepChem's ScaffoldSplitter, with which most results on
MoleculeNet are reported; nothing in them is random. They may depend on the version of RDKit, because versions differ in
which SMILES they parse and which atoms they consider aromatic. RDKit 2024.9 and 2026.9 give the same splits of the data
sets of `moleculenet.py`, although their canonical SMILES differ.
"""

import collections
from collections.abc import Sequence

from mlm_jax.data import molecules

TRAIN, VALIDATION = 0.8, 0.1


def scaffold(smiles: str) -> str | None:
    """The SMILES of the Bemis–Murcko scaffold without stereochemistry.

    Args:
      smiles: the SMILES of the molecule.

    Returns:
      The scaffold; '' if the molecule has no rings, and None if `smiles` cannot be parsed.

    Raises:
      ImportError: without the extra `smiles`.
    """
    molecule = molecules.parse(smiles)
    if molecule is None:
        return None
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return MurckoScaffold.MurckoScaffoldSmiles(mol=molecule, includeChirality=False)


def split(scaffolds: Sequence[str | None]) -> dict[str, list[int]]:
    """Divides molecules 80/10/10 so that all molecules of a scaffold are in the same set.

    Scaffolds are assigned in order of decreasing frequency; of equally frequent scaffolds, the one that first occurs
    later is assigned first. A scaffold goes to the training set if that stays within 80 % of the molecules, else to the
    validation set if both sets stay within 90 %, else to the test set.

    Args:
      scaffolds: the scaffold of each molecule. A molecule whose scaffold is None counts towards the percentages, but is
        in none of the sets.

    Returns:
      The indices in `scaffolds` of the molecules of 'train', 'validation' and 'test'.
    """
    groups = collections.defaultdict(list)
    for place, name in enumerate(scaffolds):
        if name is not None:
            groups[name].append(place)
    train_cutoff, validation_cutoff = TRAIN * len(scaffolds), (TRAIN + VALIDATION) * len(scaffolds)
    sets: dict[str, list[int]] = {'train': [], 'validation': [], 'test': []}
    for group in sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True):
        if len(sets['train']) + len(group) <= train_cutoff:
            sets['train'] += group
        elif len(sets['train']) + len(sets['validation']) + len(group) <= validation_cutoff:
            sets['validation'] += group
        else:
            sets['test'] += group
    return sets
