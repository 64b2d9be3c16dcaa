"""Molecules behind SMILES: which can be read, and other ways to write the same one. Needs RDKit (extra `smiles`).

One molecule has many SMILES: they start at another atom, and go round rings and into branches in another order. The
canonical one is what corpora mostly hold. Which one that is depends on the version of RDKit: where you can, write a
corpus with the version that will write what the model reads later.
"""

import collections
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any


def parse(smiles: str) -> Any:
    """RDKit's molecule, or None where RDKit refuses the SMILES, whose complaints are not printed.

    Raises:
      ImportError: without the extra `smiles`.
    """
    rdkit = _rdkit()
    with rdkit.rdBase.BlockLogs():
        return rdkit.Chem.MolFromSmiles(smiles)


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES of the same molecule, with its stereochemistry; None where it cannot be parsed."""
    molecule = parse(smiles)
    return None if molecule is None else _rdkit().Chem.MolToSmiles(molecule)


def variants(smiles: str, count: int, seed: int = 0) -> list[str] | None:
    """Random SMILES of the same molecule.

    Args:
      smiles: of the molecule.
      count: how many; those of a small molecule repeat.
      seed: gives others. They depend on it and on `smiles` alone, and on the version of RDKit.

    Returns:
      `count` SMILES; None where the given one cannot be parsed.
    """
    molecule = parse(smiles)
    if molecule is None:
        return None
    digest = hashlib.blake2b(f'{seed} {smiles}'.encode(), digest_size=8).digest()
    positive_int32 = 1 + int.from_bytes(digest) % (2**31 - 1)
    return list(_rdkit().Chem.MolToRandomSmilesVect(molecule, count, randomSeed=positive_int32))


def copies(documents: Sequence[bytes], count: int, repairs: collections.Counter) -> Iterator[bytes]:
    """`count` variants of each document, a SMILES in UTF-8; those that cannot be parsed have none, and are counted."""
    for document in documents:
        written = variants(document.decode().strip(), count)
        if written is None:
            repairs['SMILES that RDKit does not parse, without copies'] += 1
        else:
            yield from (smiles.encode() for smiles in written)


def _rdkit() -> Any:
    try:
        import rdkit.Chem
        import rdkit.rdBase
    except ImportError:
        raise ImportError("reading molecules needs the package rdkit: pip install 'mlm_jax[smiles]'") from None
    return rdkit
