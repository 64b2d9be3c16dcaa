"""Layouts of tokenizer.json as models publish them, with small vocabularies: read with the ids of the package, and
written again for `transformers` with the same ids."""

import functools
import io
import json

import pytest
import sentencepiece
from odd_text import BERT, LINES, ROBERTA, odd_lines

from mlm_jax.config import ConfigError
from mlm_jax.data import fast_tokenizer, masking_tables, residues, sentencepiece_proto
from mlm_jax.data.tokenizer_json import JSONTokenizer
from mlm_jax.data.tokenizer_parts import added_token, around_texts
from mlm_jax.data.tokenizers import Tokenizer

hub = pytest.importorskip('tokenizers')
METASPACE = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True}
OLD_METASPACE = {'type': 'Metaspace', 'replacement': '▁', 'str_rep': '▁', 'add_prefix_space': True}
ESM = ['<cls>', '<pad>', '<eos>', '<unk>', *'LAGVSERTIDPKQNFYMHWCXBUZO.-', '<null_1>', '<mask>']


@functools.cache
def sentencepieces() -> tuple[list[list], dict]:
    """Unigram pieces with their scores, and the normalizer `Precompiled`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, *odd_lines(300, ())]), model_writer=model, vocab_size=160,
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    spec = sentencepiece_proto.ModelProto.FromString(model.getvalue())
    precompiled = hub.normalizers.Precompiled(spec.normalizer_spec.precompiled_charsmap)
    return [[piece.piece, piece.score] for piece in spec.pieces[3:]], json.loads(precompiled.__getstate__())


def file(model: dict, added: list[dict], **parts) -> bytes:
    empty = dict.fromkeys(('truncation', 'padding', 'normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
    return json.dumps({'version': '1.0', **empty, **parts, 'added_tokens': added, 'model': model}).encode()


def sequence(key: str, *parts: dict) -> dict:
    return {'type': 'Sequence', key: list(parts)}


def xlm_roberta(new: bool = True, declared: bool = True) -> bytes:
    """Specials in the vocabulary, with score 0."""
    pieces, precompiled = sentencepieces()
    vocab = [['<s>', 0.0], ['<pad>', 0.0], ['</s>', 0.0], ['<unk>', 0.0], *pieces, ['<mask>', 0.0]]
    added = [added_token(i, vocab[i][0]) for i in range(4)] + [added_token(len(vocab) - 1, '<mask>', lstrip=True)]
    metaspace = METASPACE if new else OLD_METASPACE
    return file(
        {'unk_id': 3, 'vocab': vocab} | ({'type': 'Unigram', 'byte_fallback': False} if new else {}),
        added if declared else [],
        normalizer=precompiled,
        pre_tokenizer=sequence('pretokenizers', {'type': 'WhitespaceSplit'}, metaspace),
        post_processor=around_texts(('<s>', 0), ('</s>', 2)),
        decoder=metaspace,
    )


def deberta_v3() -> bytes:
    """Specials in the vocabulary, with score 0, but [MASK]."""
    pieces, precompiled = sentencepieces()
    vocab = [['[PAD]', 0.0], ['[CLS]', 0.0], ['[SEP]', 0.0], ['[UNK]', 0.0], *pieces]
    added = [added_token(i, vocab[i][0], normalized=i == 3) for i in range(4)]
    strip = {'type': 'Strip', 'strip_left': True, 'strip_right': True}
    spaces = {'type': 'Replace', 'pattern': {'Regex': ' {2,}'}, 'content': ' '}
    return file(
        {'type': 'Unigram', 'unk_id': 3, 'vocab': vocab, 'byte_fallback': False},
        [*added, added_token(len(vocab), '[MASK]')],
        normalizer=sequence('normalizers', strip, precompiled, spaces),
        pre_tokenizer=sequence('pretokenizers', METASPACE),
        post_processor=around_texts(('[CLS]', 1), ('[SEP]', 2)),
        decoder=METASPACE,
    )


def camembert() -> bytes:
    """More specials, with one score of −100, and some that nothing uses."""
    pieces, precompiled = sentencepieces()
    names = ['<s>NOTUSED', '<pad>', '</s>NOTUSED', '<unk>', '<unk>NOTUSED', '<s>', '</s>']
    vocab = [[name, -100.0 if name == '<unk>NOTUSED' else 0.0] for name in names] + [*pieces, ['<mask>', 0.0]]
    added = [added_token(i, name) for i, name in enumerate(names) if i != 4]
    return file(
        {'type': 'Unigram', 'unk_id': 3, 'vocab': vocab},
        [*added, added_token(len(vocab) - 1, '<mask>', lstrip=True)],
        normalizer=precompiled,
        pre_tokenizer=sequence('pretokenizers', {'type': 'WhitespaceSplit'}, METASPACE),
        post_processor=around_texts(('<s>', 5), ('</s>', 6)),
        decoder=METASPACE,
    )


def trained(model, pre_tokenizer, trainer, specials: list[str], size: int, **keys) -> dict:
    tokenizer = hub.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(LINES, trainer(special_tokens=specials, vocab_size=size, show_progress=False, **keys))
    return json.loads(tokenizer.to_str())['model']


def gemma() -> bytes:
    """BPE with bytes, spaces after words, other names of the symbols, and added tokens that are text: mmBERT's."""
    specials = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>']
    text = ['<unused0>', '\n', '\n\n', '▁▁']
    spaced = hub.pre_tokenizers.Metaspace(prepend_scheme='never')
    names = [*specials, *text, *(f'<0x{byte:02X}>' for byte in range(256))]
    model = trained(hub.models.BPE(unk_token='<unk>'), spaced, hub.trainers.BpeTrainer, names, 400)
    return file(
        model | {'byte_fallback': True, 'fuse_unk': True},
        [added_token(i, name) | {'special': i < 5} for i, name in enumerate([*specials, *text])],
        normalizer={'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'},
        pre_tokenizer={
            'type': 'Split', 'pattern': {'String': ' '}, 'behavior': 'MergedWithPrevious', 'invert': False,
        },
        post_processor=around_texts(('<bos>', 2), ('<eos>', 1)),
    )  # fmt: skip


def byte_level(specials: list[str], after: list[str], text: tuple[str, ...] = (), **parts) -> bytes:
    """Bytes as letters; specials before the pieces and after them, and added tokens that are text."""
    pre, size = hub.pre_tokenizers.ByteLevel(add_prefix_space=False), 330
    alphabet = hub.pre_tokenizers.ByteLevel.alphabet()
    model = trained(hub.models.BPE(), pre, hub.trainers.BpeTrainer, specials, size, initial_alphabet=alphabet)
    size = len(model['vocab'])
    added = [added_token(i, name, normalized=True) for i, name in enumerate(specials)]
    added += [added_token(size + i, name, lstrip='mask' in name.lower()) for i, name in enumerate(after)]
    size += len(after)
    added += [added_token(size + i, name, normalized=True) | {'special': False} for i, name in enumerate(text)]
    level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    return file(model, added, **{'pre_tokenizer': level, 'decoder': level} | parts)


def roberta() -> bytes:
    post = {
        'type': 'RobertaProcessing', 'sep': ['</s>', 2], 'cls': ['<s>', 0], 'trim_offsets': True,
        'add_prefix_space': False,
    }  # fmt: skip
    return byte_level(['<s>', '<pad>', '</s>', '<unk>'], ['<mask>'], post_processor=post)


def modernbert() -> bytes:
    """GPT-NeoX's pieces, runs of spaces as added tokens, and BERT's symbols after them."""
    symbols = ['[UNK]', '[CLS]', '[SEP]', '[PAD]', '[MASK]']
    post = around_texts(('[CLS]', 331), ('[SEP]', 332))
    return byte_level(
        ['<|padding|>', '<|endoftext|>'], symbols, ('    ', '  ', '|||EMAIL|||'), normalizer={'type': 'NFC'},
        post_processor=post,
    )  # fmt: skip


def llama_3() -> bytes:
    """EuroBERT's symbols."""
    symbols = ['<|begin_of_text|>', '<|end_of_text|>', '<|mask|>', '<|pad|>']
    template = around_texts(('<|begin_of_text|>', 330), ('<|end_of_text|>', 331))
    return byte_level([], symbols, post_processor=sequence('processors', {
        'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': False, 'use_regex': True,
    }, template))  # fmt: skip


def mpnet() -> bytes:
    """RoBERTa's symbols, declared, and BERT's, which are left in the vocabulary."""
    names = [*ROBERTA[:4], *BERT]
    model = trained(
        hub.models.WordPiece(unk_token='[UNK]'), hub.pre_tokenizers.BertPreTokenizer(),
        hub.trainers.WordPieceTrainer, names, 150,
    )  # fmt: skip
    del model['type']  # as files of 2020 have it
    ids = {'<s>': 0, '<pad>': 1, '</s>': 2, '<unk>': 3, '[UNK]': 5}
    post = {
        'type': 'RobertaProcessing', 'sep': ['</s>', 2], 'cls': ['<s>', 0], 'trim_offsets': True,
        'add_prefix_space': False,
    }  # fmt: skip
    return file(
        model,
        [added_token(i, name) for name, i in ids.items()] + [added_token(len(model['vocab']), '<mask>', lstrip=True)],
        normalizer={
            'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True, 'strip_accents': None,
            'lowercase': True,
        },
        pre_tokenizer={'type': 'BertPreTokenizer'},
        post_processor=post,
        decoder={'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
    )  # fmt: skip


# Layout → the file, and the names of [CLS], [SEP], [PAD], [MASK] and [UNK].
LAYOUTS = {
    'XLM-R': (xlm_roberta, '<s> </s> <pad> <mask> <unk>'),
    'XLM-R of 2020': (functools.partial(xlm_roberta, new=False), '<s> </s> <pad> <mask> <unk>'),
    'XLM-R, nothing declared': (functools.partial(xlm_roberta, declared=False), '<s> </s> <pad> <mask> <unk>'),
    'DeBERTa-v3': (deberta_v3, '[CLS] [SEP] [PAD] [MASK] [UNK]'),
    'CamemBERT': (camembert, '<s> </s> <pad> <mask> <unk>'),
    'mmBERT': (gemma, '<bos> <eos> <pad> <mask> <unk>'),
    'RoBERTa': (roberta, '<s> </s> <pad> <mask>'),
    'ModernBERT': (modernbert, '[CLS] [SEP] [PAD] [MASK]'),
    'EuroBERT': (llama_3, '<|begin_of_text|> <|end_of_text|> <|pad|> <|mask|>'),
    'MPNet': (mpnet, '<s> </s> <pad> <mask> [UNK]'),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_published_layouts(layout, tmp_path):
    make, symbols = LAYOUTS[layout]
    content = make()
    ours, theirs = JSONTokenizer(content), hub.Tokenizer.from_str(content.decode())
    v = ours.vocabulary
    ids = [v.cls_id, v.sep_id, v.pad_id, v.mask_id, *([] if ours.unknown_id is None else [ours.unknown_id])]
    assert [theirs.id_to_token(i) for i in ids] == symbols.split()
    names = {token.content for token in theirs.get_added_tokens_decoder().values() if token.special} | {
        *symbols.split()
    }
    lines = [*LINES, *odd_lines(800)]
    same = 0
    for line, encoded in zip(lines, ours.encode_batch(lines), strict=True):
        assert not set(ids[:4]) & set(encoded.tolist()), f'a special token from {line!r}'
        if not any(name in line for name in names):
            assert encoded.tolist() == theirs.encode(line, add_special_tokens=False).ids, line
            same += 1
    assert same > 600
    for name in names:
        assert not set(ids[:4]) & set(ours.encode(f'a {name} b{name}').tolist()), name
    fast_tokenizer.write_fast_tokenizer(ours, tmp_path, 64)
    assert fast_tokenizer.check_fast_tokenizer(ours, tmp_path, lines) > 600
    again = Tokenizer.from_file(tmp_path / 'tokenizer.json')
    assert again.vocabulary == v and again.pieces(range(v.size)) == ours.pieces(range(v.size))
    masked = ours.encode_masked('the [MASK] reads[MASK].', '[MASK]')
    text = 'the [MASK] reads[MASK].'.replace('[MASK]', theirs.id_to_token(v.mask_id))
    fast = hub.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    assert fast.encode(text, add_special_tokens=False).ids == masked.tolist()


def test_residues(tmp_path):
    path = tmp_path / 'vocab.txt'
    path.write_text('\n'.join(ESM))
    ours = Tokenizer.from_file(path)
    v = ours.vocabulary
    assert (v.size, v.cls_id, v.pad_id, v.sep_id, v.mask_id, ours.unknown_id) == (33, 0, 1, 2, 32, 3)
    assert v.special_ids == (0, 1, 2, 3, 31, 32)
    assert ours.encode('MKT jj1 L.-\n*').tolist() == [20, 15, 11, 3, 4, 29, 30, 3]
    assert ours.decode(ours.encode('MKTL')) == 'MKTL' and ours.text_of(4) == b'L'
    assert ours.encode_masked('MK[MASK]T', '[MASK]').tolist() == [20, 15, 32, 11]
    assert masking_tables.of_words(ours, 33)[1].shape == (33,)
    fast_tokenizer.write_fast_tokenizer(ours, tmp_path / 'fast', 64)
    assert fast_tokenizer.check_fast_tokenizer(ours, tmp_path / 'fast', ['MKTLX', 'mkt', *odd_lines(200)]) > 100
    assert JSONTokenizer(ours.model).vocabulary == v, 'the copy beside prepared rows'
    for other in ('\n'.join(ESM[1:]), '\n'.join([*ESM, 'word']), 'the\nof\n'):
        assert not residues.is_vocabulary(other.encode())
        path.write_text(other)
        with pytest.raises(ConfigError, match='is not a SentencePiece model'):
            Tokenizer.from_file(path)
