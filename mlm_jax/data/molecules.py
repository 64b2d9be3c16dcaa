"""Parses SMILES and writes other SMILES of the same molecule. Needs RDKit (extra `smiles`).

A molecule has many SMILES, which start at different atoms and visit rings and branches in different orders. Most
corpora hold the canonical SMILES. It depends on the version of RDKit: if possible, write a corpus with the same version
that will later write the inputs of the model.
"""

import collections
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any


def parse(smiles: str) -> Any:
    """The RDKit molecule, or None if RDKit rejects the SMILES; RDKit's own messages are not printed.

    Raises:
      ImportError: without the extra `smiles`.
    """
    rdkit = _rdkit()
    with rdkit.rdBase.BlockLogs():
        return rdkit.Chem.MolFromSmiles(smiles)


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES of the same molecule, with its stereochemistry; None if `smiles` cannot be parsed."""
    molecule = parse(smiles)
    return None if molecule is None else _rdkit().Chem.MolToSmiles(molecule)


def variants(smiles: str, count: int, seed: int = 0) -> list[str] | None:
    """Random SMILES of the same molecule.

    Args:
      smiles: the SMILES of the molecule.
      count: the number of variants; small molecules have few variants, so some repeat.
      seed: the variants depend only on this seed, on `smiles`, and on the version of RDKit.

    Returns:
      `count` SMILES, or None if `smiles` cannot be parsed.

    Raises:
      ImportError: without the extra `smiles`.
    """
    molecule = parse(smiles)
    if molecule is None:
        return None
    digest = hashlib.blake2b(f'{seed} {smiles}'.encode(), digest_size=8).digest()
    positive_int32 = 1 + int.from_bytes(digest) % (2**31 - 1)
    return list(_rdkit().Chem.MolToRandomSmilesVect(molecule, count, randomSeed=positive_int32))


def copies(documents: Sequence[bytes], count: int, repairs: collections.Counter[str]) -> Iterator[bytes]:
    """Yields `count` variants of each document, a SMILES in UTF-8; counts those that cannot be parsed in `repairs`."""
    for document in documents:
        written = variants(document.decode().strip(), count)
        if written is None:
            repairs['SMILES that RDKit cannot parse, for which no variants were added'] += 1
        else:
            yield from (smiles.encode() for smiles in written)


def _rdkit() -> Any:
    try:
        import rdkit.Chem
        import rdkit.rdBase
    except ImportError:
        raise ImportError("reading molecules needs the package rdkit: pip install 'mlm_jax[smiles]'") from None
    return rdkit
