"""Writes the files of a fast tokenizer of `transformers`, whose ids are those of one of our tokenizers.

`AutoTokenizer.from_pretrained(directory)` then needs no code of this package. It puts texts between the special tokens
of the rows that a model was trained on: [CLS] A [SEP], and pairs as [CLS] A [SEP] [SEP] B [SEP] (data/sequences.py).
Unlike here, the name of a special token in a text becomes that token: a [MASK] is what `fill-mask` predicts.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from mlm_jax.data import sentencepiece_json, sequences, smiles, tokenizer_parts
from mlm_jax.data.smiles import SmilesTokenizer
from mlm_jax.data.tokenizer_json import JSONTokenizer, decoded
from mlm_jax.data.tokenizers import AnyTokenizer, Tokenizer
from mlm_jax.files import atomic
from mlm_jax.files.errors import ConfigError

SYMBOLS = ('cls', 'sep', 'pad', 'mask')
# Compared on each writing: scripts, compositions, marks, white space, controls, and characters that no vocabulary has.
SENTENCES = (
    'The tokenizer reads many words, and writes each of them: 3.14 (or so) — "quoted", isn’t it?',
    '  two  spaces\tand\nlines \r\n ',
    'naïve straße İstanbul Σίσυφος e\u0301 e\u0302\u0301 a\u0323\u0302 ﬁ ﬁ\u0301 Ａ\u030a ½ ① ㎏ …',
    '漢字かな交じり文 ｶﾞ カ\u3099 한국어 \u1112\u1161\u11ab\u1100\u116e\u11a8 ไทยำ हिन्दी क़ العربية ﷺ עִבְרִית',
    '😀 👩\u200d👧 🇩🇪 1\ufe0f\u20e3 👍🏽 \u200b\ufeff\u00ad\u0001\u0085\u2028\u3000\U000e0041 \U0010fffd',
    '▁under ▁ scored▁ <0x41> <s> Ġ ##ing',
    'CC(=O)Oc1ccccc1C(=O)O [C@@H](N)Cl',
    '',
)


def write_fast_tokenizer(tokenizer: AnyTokenizer, directory: pathlib.Path, max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json; existing ones are replaced.

    Where the package tokenizers is installed, the ids of some sentences are compared before anything is written.

    Args:
      tokenizer: SentencePiece, a tokenizer.json, or SMILES.
      directory: where to write; it is created.
      max_length: the number of tokens, special ones included, to which `transformers` may truncate texts.

    Raises:
      ConfigError: if no tokenizer.json gives the same ids.
    """
    stored = _stored(tokenizer)
    if (theirs := _package()) is not None:
        _check(tokenizer, theirs.Tokenizer.from_str(json.dumps(stored)), SENTENCES)
    names = _names(tokenizer)
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': max_length,
        'model_input_names': ['input_ids', 'attention_mask'],
        'padding_side': 'right',
        'truncation_side': 'right',
        'clean_up_tokenization_spaces': False,
        **names,
    }
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in (
        ('tokenizer.json', stored), ('tokenizer_config.json', config), ('special_tokens_map.json', names),
    ):  # fmt: skip
        text = json.dumps(content, ensure_ascii=False, indent=2)
        atomic.write_bytes(directory / file, f'{text}\n'.encode())


def check_fast_tokenizer(tokenizer: AnyTokenizer, directory: pathlib.Path, texts: Iterable[str]) -> int:
    """Compares the ids of the files in a directory with ours; needs the package tokenizers (extra `huggingface`).

    Returns:
      The number of texts compared: those that do not contain the name of a special token.

    Raises:
      ConfigError: if the ids of a text differ, unless they are another division into unigram pieces that is exactly as
        likely (sentencepiece_json.py).
    """
    theirs = _package()
    if theirs is None:
        raise ImportError("comparing tokenizers needs the package tokenizers: pip install 'mlm_jax[huggingface]'")
    return _check(tokenizer, theirs.Tokenizer.from_file(str(directory / 'tokenizer.json')), texts)


def is_export(tokenizer: AnyTokenizer, file: pathlib.Path) -> bool:
    """Whether a tokenizer.json is what `write_fast_tokenizer` writes for a tokenizer: then their ids are the same."""
    try:
        return json.loads(file.read_bytes()) == _stored(tokenizer)
    except ValueError:  # it is damaged, or the tokenizer has no such form
        return False


def _package() -> Any:
    try:
        import tokenizers
    except ImportError:
        return None
    return tokenizers


def _stored(tokenizer: AnyTokenizer) -> dict:
    """The content of tokenizer.json."""
    if isinstance(tokenizer, Tokenizer):
        stored = sentencepiece_json.convert(tokenizer.model, tokenizer.vocabulary.mask_id)
    elif isinstance(tokenizer, SmilesTokenizer):
        stored = _of_smiles(tokenizer)
    else:
        stored = _with_declared_specials(tokenizer)
    return stored | {'truncation': None, 'padding': None, 'post_processor': _post_processor(tokenizer, stored)}


def _names(tokenizer: AnyTokenizer) -> dict[str, str]:
    """The special tokens, by the names that `transformers` gives their roles."""
    v = tokenizer.vocabulary
    names = {f'{symbol}_token': tokenizer.id_to_piece(getattr(v, f'{symbol}_id')) for symbol in SYMBOLS}
    if tokenizer.unknown_id is not None:
        names['unk_token'] = tokenizer.id_to_piece(tokenizer.unknown_id)
    return names


def _post_processor(tokenizer: AnyTokenizer, stored: dict) -> dict:
    """Puts special tokens around one text or two, as `sequences.join` does."""
    names, v = _names(tokenizer), tokenizer.vocabulary
    template = tokenizer_parts.around_texts((names['cls_token'], v.cls_id), (names['sep_token'], v.sep_id))
    if '"ByteLevel"' not in json.dumps(stored['pre_tokenizer']):
        return template
    # The offsets of a byte-level token leave out the space before a word, as RoBERTa's do.
    trim = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    return {'type': 'Sequence', 'processors': [trim, template]}


def _with_declared_specials(tokenizer: JSONTokenizer) -> dict:
    """A given tokenizer.json in which the special tokens are declared, and a mask takes the space before it."""
    stored, v = json.loads(decoded(tokenizer.model)), tokenizer.vocabulary
    added = {token['id']: token for token in stored.get('added_tokens') or []}
    for token in (v.pad_id, v.cls_id, v.sep_id, v.mask_id, tokenizer.unknown_id):
        if token is not None:
            entry = added.get(token) or tokenizer_parts.added_token(token, tokenizer.id_to_piece(token))
            added[token] = entry | {'special': True, 'lstrip': entry['lstrip'] or token == v.mask_id}
    return stored | {'added_tokens': [added[token] for token in sorted(added)]}


def _of_smiles(tokenizer: SmilesTokenizer) -> dict:
    vocab = {piece: i for i, piece in enumerate(tokenizer.pieces(range(tokenizer.vocabulary.size)))}
    # The package writes "any character" otherwise, and knows digits of all scripts.
    pattern = smiles.PATTERN.replace(r'(?s:.)', r'[\s\S]').replace(r'\d', '[0-9]')
    spaces = tokenizer_parts.character_class(c for c in map(chr, range(0x3001)) if c.isspace())
    return {
        'version': '1.0',
        'added_tokens': [tokenizer_parts.added_token(i, name) for i, name in enumerate(smiles.SPECIALS)],
        'normalizer': tokenizer_parts.replace(rf'\A[{spaces}]+|(?<![{spaces}])(?>[{spaces}]+)\z', ''),
        'pre_tokenizer': tokenizer_parts.split(pattern, 'Isolated'),
        'decoder': {'type': 'Fuse'},
        'model': {'type': 'WordLevel', 'vocab': vocab, 'unk_token': '[UNK]'},
    }


def _check(tokenizer: AnyTokenizer, theirs: Any, texts: Iterable[str]) -> int:
    """Compares the ids of texts with those of a `tokenizers.Tokenizer`; how many were compared."""
    names, v, compared = _special_names(theirs), tokenizer.vocabulary, 0
    scores = sentencepiece_json.unigram_scores(tokenizer.model) if isinstance(tokenizer, Tokenizer) else {}
    for text in texts:
        if any(name in text for name in names):
            continue
        compared += 1
        ours = sequences.join([tokenizer.encode(text)], v).tolist()
        ids = theirs.encode(text).ids
        if ids == ours:
            continue
        if not _are_equally_likely(ids, ours, scores) or tokenizer.decode(ids) != tokenizer.decode(ours):
            at = next((i for i, pair in enumerate(zip(ids, ours)) if pair[0] != pair[1]), min(len(ids), len(ours)))
            pieces = [theirs.id_to_token(i) for i in ids[at : at + 5]]
            raise ConfigError(
                f'a fast tokenizer would give other ids than this one: of {text[:200]!r}, the tokens from number {at} '
                f'are {pieces} instead of {tokenizer.pieces(ours[at : at + 5])}'
            )
    return compared


def _are_equally_likely(ids: list[int], others: list[int], scores: dict[int, float]) -> bool:
    """Whether only rounding chose between two divisions of a text into pieces with these scores."""
    if not all(token in scores for token in {*ids} ^ {*others}):
        return False
    sums = [sum(scores.get(token, 0) for token in tokens) for tokens in (ids, others)]
    return abs(sums[0] - sums[1]) <= 1e-6 * abs(sums[0])


def _special_names(theirs: Any) -> list[str]:
    return [token.content for token in theirs.get_added_tokens_decoder().values() if token.special]
