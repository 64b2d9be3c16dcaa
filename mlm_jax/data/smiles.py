"""Tokens of SMILES: one atom, bond, branch or ring closure each; molecules in, ids without specials out.

A token is what OpenSMILES (opensmiles.org) writes for one thing: an atom in brackets, whole, with its isotope,
chirality, hydrogens and charge; an atom of the organic subset, Cl and Br included; an aromatic one; a bond; either end
of a branch; a ring closure, of two digits with its %; the dot between molecules. RDKit's extensions are known: dative
bonds (-> and <-), `~`, ring closures %(123) and atoms by number, [#6]. Reactions are not molecules: `>` is no token.

`tokenizer.model=smiles` collects the vocabulary from the corpus, the most frequent tokens first. Ids that are left over
up to `vocab_size` are unused: special, so that masking never puts one into a molecule. Tokens outside the vocabulary,
such as an ion that the corpus does not hold, become [UNK].
"""

import collections
import itertools
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np

from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.vocabulary import Vocabulary

SPECIALS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
_LARGEST = 1 << 20  # ids: more come of a damaged number
_FORMAT = 'mlm_jax SMILES tokens'  # tells the file from a tokenizer.json of Hugging Face
_BRACKET_ATOM = (
    r'\[\d*'  # isotope
    r'(?:[A-Z][a-z]?|[bcnops]|se|as|te|si|\*|#\d+)'  # element, aromatic atom, any atom, atomic number
    r'(?:@(?:@|(?:TH|AL|SP|TB|OH)\d{1,2})?)?'  # chirality
    r'(?:H\d?)?'
    r'(?:\+\++|--+|[+-]\d{0,2})?'  # charge
    r'(?::\d+)?\]'  # class
)
_TOKEN = rf'{_BRACKET_ATOM}|Br|Cl|[BCNOPSFI*]|[bcnops]|->|<-|%\d\d|%\(\d{{3,5}}\)|[0-9()=#$:~/\\.-]'
_SPLIT = re.compile(rf'{_TOKEN}|(?s:.)', re.ASCII)  # what is no token falls to pieces of one character
_WHOLE = re.compile(rf'(?:{_TOKEN})++', re.ASCII)


def split(text: str) -> list[str]:
    """The tokens of a SMILES, in order; they make up the text. Characters that belong to none stand alone."""
    return _SPLIT.findall(text)


def is_smiles(text: str) -> bool:
    """Whether a text is made of tokens of SMILES alone; whether rings close and valences hold is RDKit's to say."""
    return _WHOLE.fullmatch(text) is not None


class SmilesTokenizer:
    """A vocabulary of SMILES tokens, with the interface of `tokenizers.Tokenizer`.

    Attributes:
      vocabulary: the special ids, those of unused pieces among them.
      model: the vocabulary as JSON, as `tokenizers.Tokenizer.from_file` reads it.
      package: none: nothing but this file reads it.
      unknown_id: stands for tokens outside the vocabulary, and for characters that no SMILES has.
    """

    package = ''
    unknown_id = SPECIALS.index('[UNK]')

    def __init__(self, model: bytes, name: str = 'the SMILES vocabulary'):
        """Reads a vocabulary; `name` stands for it in errors.

        Raises:
          ConfigError: when it is none, or damaged.
        """
        try:
            stored = json.loads(model)
            pieces, size = tuple(stored['pieces']), int(stored['size'])
            if stored['format'] != _FORMAT or pieces[: len(SPECIALS)] != SPECIALS or len(set(pieces)) < len(pieces):
                raise ValueError('its pieces are not those of a vocabulary')
            if strange := [p for p in pieces[len(SPECIALS) :] if not is_smiles(p) or split(p) != [p]]:
                raise ValueError(f'{strange[0]!r} is no token of SMILES')
            if not len(SPECIALS) < len(pieces) <= size <= _LARGEST:
                raise ValueError(f'it has {len(pieces)} pieces and {size} ids')
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ConfigError(f'{name} is no vocabulary of SMILES tokens: {error}') from error
        self.model = model
        self._pieces = (*pieces, *(f'[unused{i}]' for i in range(len(pieces), size)))
        self._ids = {piece: i for i, piece in enumerate(pieces) if i >= len(SPECIALS)}
        special_ids = (*range(len(SPECIALS)), *range(len(pieces), size))
        self.vocabulary = Vocabulary(
            size=size,
            special_ids=special_ids,
            **{f'{symbol}_id': SPECIALS.index(f'[{symbol.upper()}]') for symbol in ('pad', 'cls', 'sep', 'mask')},
        )

    def encode(self, text: str) -> np.ndarray:
        """The ids of a SMILES, int32[n], without [CLS] or [SEP]; white space around it does not count."""
        return np.array([self._ids.get(piece, self.unknown_id) for piece in split(text.strip())], np.int32)

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """The ids of several SMILES (or their UTF-8), int32[n] each."""
        return [self.encode(text.decode() if isinstance(text, bytes) else text) for text in texts]

    def encode_masked(self, text: str, marker: str) -> np.ndarray:
        """The ids of a SMILES in which every `marker` becomes [MASK], int32[n], without [CLS] or [SEP]."""
        *before, last = self.encode_batch(text.split(marker))
        masked = [np.append(part, np.int32(self.vocabulary.mask_id)) for part in before]
        return np.concatenate([*masked, last])

    def readable(self, texts: Sequence[bytes], repairs: collections.Counter) -> list[bytes]:
        """The texts that are SMILES; the others are counted in `repairs`."""
        kept = []
        for utf8 in texts:
            text = utf8.decode().strip()
            if is_smiles(text):
                kept.append(utf8)
            elif len(text.split()) > 1:
                repairs['documents with white space inside a SMILES, dropped (smi:GLOB reads names behind it)'] += 1
            else:
                repairs['documents with characters that no SMILES has, dropped'] += 1
        return kept

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The SMILES of ids; special ones are left out."""
        return ''.join(self._pieces[i] for i in np.asarray(ids).tolist() if self._pieces[i] in self._ids)

    def id_to_piece(self, token: int) -> str:
        """The token of one id."""
        return self._pieces[int(token)]

    def text_of(self, token: int) -> bytes:
        """What one id stands for in text; b'' for a special one."""
        return b'' if token in self.vocabulary.special_ids else self._pieces[int(token)].encode()

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The tokens of ids."""
        return [self.id_to_piece(i) for i in np.asarray(ids).tolist()]


def is_model(model: bytes) -> bool:
    """Whether JSON holds a vocabulary of SMILES tokens, rather than a tokenizer of Hugging Face."""
    try:
        stored = json.loads(model)
    except (ValueError, RecursionError):
        return False
    return isinstance(stored, dict) and stored.get('format') == _FORMAT


def train(texts: Iterable[str], vocab_size: int) -> SmilesTokenizer:
    """Collects a vocabulary; the same texts in any order give the same bytes.

    Args:
      texts: SMILES; what is none is passed over.
      vocab_size: ids, specials and unused ones included. With fewer tokens in the texts, the last ids are unused; with
        more, the rarest tokens are left out.

    Raises:
      ConfigError: when no text is a SMILES, or the vocabulary has no room for any token.
    """
    molecules = filter(is_smiles, (text.strip() for text in texts))
    counts = collections.Counter(itertools.chain.from_iterable(map(split, molecules)))
    if not counts:
        raise ConfigError(
            'the training text holds no SMILES: each document must be one, and nothing else. Check data.corpus, such '
            'as smi:GLOB, or csv:GLOB with data.text_key; tokenizer.model=unigram is for other text'
        )
    room = vocab_size - len(SPECIALS)
    if room < 1:
        raise ConfigError(
            f'vocab_size={vocab_size} leaves no room for tokens beside {", ".join(SPECIALS)}; the text has '
            f'{len(counts)}: set vocab_size={len(counts) + len(SPECIALS)}, or more'
        )
    ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))
    stored = {'format': _FORMAT, 'size': vocab_size, 'pieces': [*SPECIALS, *ranked[:room]]}
    return SmilesTokenizer(f'{json.dumps(stored, indent=1)}\n'.encode())
