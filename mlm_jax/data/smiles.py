"""A tokenizer for SMILES with one token for each atom, bond, branch or ring closure.

A token is one element of OpenSMILES (opensmiles.org): a whole bracket atom with its isotope, chirality, hydrogens and
charge; an atom of the organic subset, including Cl and Br; an aromatic atom; a bond; the start or the end of a branch;
a ring closure, including the % of one with two digits; or the dot between molecules. RDKit's extensions are supported:
dative bonds (-> and <-), `~`, ring closures such as %(123), and atoms by number, such as [#6]. Reactions are not
molecules, so `>` is not a token.

`tokenizer.model=smiles` collects the vocabulary from the corpus, the most frequent tokens first. If fewer than
`vocab_size` ids are needed, the remaining ids are unused; they count as special, so that masking never puts one into a
molecule. Tokens outside the vocabulary, such as an ion that does not occur in the corpus, become [UNK].
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
_LARGEST = 1 << 20  # number of ids; a larger number is damaged
_FORMAT = 'mlm_jax SMILES tokens'  # distinguishes the file from a Hugging Face tokenizer.json
_BRACKET_ATOM = (
    r'\[\d*'  # isotope
    r'(?:[A-Z][a-z]?|[bcnops]|se|as|te|si|\*|#\d+)'  # element, aromatic atom, any atom, atomic number
    r'(?:@(?:@|(?:TH|AL|SP|TB|OH)\d{1,2})?)?'  # chirality
    r'(?:H\d?)?'
    r'(?:\+\++|--+|[+-]\d{0,2})?'  # charge
    r'(?::\d+)?\]'  # class
)
_TOKEN = rf'{_BRACKET_ATOM}|Br|Cl|[BCNOPSFI*]|[bcnops]|->|<-|%\d\d|%\(\d{{3,5}}\)|[0-9()=#$:~/\\.-]'
PATTERN = rf'{_TOKEN}|(?s:.)'  # text that is not a token is split into single characters
_SPLIT = re.compile(PATTERN, re.ASCII)
_WHOLE = re.compile(rf'(?:{_TOKEN})++', re.ASCII)


def split(text: str) -> list[str]:
    """Splits a text into the tokens of a SMILES; each character that belongs to no token is a part of its own."""
    return _SPLIT.findall(text)


def is_smiles(text: str) -> bool:
    """Whether a text consists of SMILES tokens only; this does not check that rings close and valences are valid."""
    return _WHOLE.fullmatch(text) is not None


class SmilesTokenizer:
    """A vocabulary of SMILES tokens, with the interface of `tokenizers.Tokenizer`.

    Attributes:
      vocabulary: the special ids, which include the ids of unused pieces.
      model: the vocabulary as JSON, as `tokenizers.Tokenizer.from_file` reads it.
      package: empty, because no other package is needed to read the vocabulary.
      unknown_id: the id for tokens outside the vocabulary and for characters that no SMILES contains.
    """

    package = ''
    unknown_id = SPECIALS.index('[UNK]')

    def __init__(self, model: bytes, name: str = 'the SMILES vocabulary'):
        """Reads a vocabulary; error messages call it `name`.

        Raises:
          ConfigError: if it is not a vocabulary of SMILES tokens, or is damaged.
        """
        try:
            stored = json.loads(model)
            pieces, size = tuple(stored['pieces']), int(stored['size'])
            if stored['format'] != _FORMAT or pieces[: len(SPECIALS)] != SPECIALS or len(set(pieces)) < len(pieces):
                raise ValueError('its pieces are not those of a vocabulary')
            if strange := [p for p in pieces[len(SPECIALS) :] if not is_smiles(p) or split(p) != [p]]:
                raise ValueError(f'{strange[0]!r} is not a SMILES token')
            if not len(SPECIALS) < len(pieces) <= size <= _LARGEST:
                raise ValueError(f'it has {len(pieces)} pieces and {size} ids')
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ConfigError(f'{name} is not a vocabulary of SMILES tokens: {error}') from error
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
        """The ids of a SMILES, int32[n], without [CLS] or [SEP]; whitespace around it is ignored."""
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
        """Returns the texts that are SMILES, and counts the others in `repairs`."""
        kept = []
        for utf8 in texts:
            text = utf8.decode().strip()
            if is_smiles(text):
                kept.append(utf8)
            elif len(text.split()) > 1:
                repairs['documents with whitespace inside a SMILES, dropped (smi:GLOB ignores names after it)'] += 1
            else:
                repairs['documents with characters that no SMILES contains, dropped'] += 1
        return kept

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The SMILES of ids; special ids are omitted."""
        return ''.join(self._pieces[i] for i in np.asarray(ids).tolist() if self._pieces[i] in self._ids)

    def id_to_piece(self, token: int) -> str:
        """The token of an id."""
        return self._pieces[int(token)]

    def text_of(self, token: int) -> bytes:
        """The text of an id; b'' for a special id."""
        return b'' if token in self.vocabulary.special_ids else self._pieces[int(token)].encode()

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The tokens of ids."""
        return [self.id_to_piece(i) for i in np.asarray(ids).tolist()]


def is_model(model: bytes) -> bool:
    """Whether JSON is a vocabulary of SMILES tokens rather than a Hugging Face tokenizer."""
    try:
        stored = json.loads(model)
    except (ValueError, RecursionError):
        return False
    return isinstance(stored, dict) and stored.get('format') == _FORMAT


def train(texts: Iterable[str], vocab_size: int) -> SmilesTokenizer:
    """Collects a vocabulary; the result does not depend on the order of the texts.

    Args:
      texts: SMILES; other texts are ignored.
      vocab_size: the number of ids, including special and unused ids. If the texts have fewer tokens, the last ids are
        unused; if they have more, the rarest tokens are omitted.

    Raises:
      ConfigError: if no text is a SMILES, or the vocabulary has no room for any token.
    """
    molecules = filter(is_smiles, (text.strip() for text in texts))
    counts = collections.Counter(itertools.chain.from_iterable(map(split, molecules)))
    if not counts:
        raise ConfigError(
            'the training text contains no SMILES: each document must be one SMILES and nothing else. Check '
            'data.corpus, for example smi:GLOB, or csv:GLOB with data.text_key; for other text, set '
            'tokenizer.model=unigram'
        )
    room = vocab_size - len(SPECIALS)
    if room < 1:
        raise ConfigError(
            f'vocab_size={vocab_size} leaves no room for tokens beside {", ".join(SPECIALS)}; the text has '
            f'{len(counts)} tokens: set vocab_size={len(counts) + len(SPECIALS)} or more'
        )
    ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))
    stored = {'format': _FORMAT, 'size': vocab_size, 'pieces': [*SPECIALS, *ranked[:room]]}
    return SmilesTokenizer(f'{json.dumps(stored, indent=1)}\n'.encode())
