"""SentencePiece's replacements of characters, done by the package tokenizers: the same for every text."""

import io
import json
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from odd_text import odd_lines, texts

from mlm_jax.config import ConfigError
from mlm_jax.data import charsmap, sentencepiece_proto

hub = pytest.importorskip('tokenizers')
CUTS = '\ufdd0\ufdd1'  # noncharacters that the normalizers use themselves


def model(rule: str) -> bytes:
    """A model whose normalization replaces characters, and does nothing else."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['some words'] * 9), model_writer=written, vocab_size=12, hard_vocab_limit=False,
        normalization_rule_name=rule, remove_extra_whitespaces=False, add_dummy_prefix=False, minloglevel=2,
        num_threads=1,
    )  # fmt: skip
    return written.getvalue()


def table(rule: str) -> bytes:
    return sentencepiece_proto.ModelProto.FromString(model(rule)).normalizer_spec.precompiled_charsmap


@pytest.fixture(scope='module')
def ours():
    """The normalization of a text by the package tokenizers."""
    stored = json.loads(hub.Tokenizer(hub.models.BPE()).to_str())
    stored['normalizer'] = {'type': 'Sequence', 'normalizers': charsmap.normalizers(table('nmt_nfkc'))}
    return hub.Tokenizer.from_str(json.dumps(stored)).normalizer.normalize_str


@pytest.fixture(scope='module')
def theirs():
    processor = sentencepiece.SentencePieceProcessor(model_proto=model('nmt_nfkc'))
    return lambda text: processor.Normalize(text).replace('▁', ' ')


def test_every_text_is_normalized_alike(ours, theirs):
    @settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(texts())
    @example('e\u0302\u0301 ﬁ\u0301 \u1112\u1161\u11ab 가\u11ab')  # which `Precompiled` alone gets wrong
    @example('\x01a\x01')
    @example('\u0301')
    def same(text):
        if not set(text) & set(CUTS):
            assert ours(text).replace('▁', ' ') == theirs(text)

    same()
    for line in odd_lines(500):
        assert ours(line).replace('▁', ' ') == theirs(line)


def test_the_replacements_are_those_of_sentencepiece(ours, theirs):
    found = charsmap.rules(table('nmt_nfkc'))
    assert len(found) > 200_000 and found['ﬁ'] == 'fi' and found['e\u0302\u0301'] == 'ế' and found['\t'] == ' '
    for source in np.random.default_rng(0).choice(sorted(found), 3000):
        assert found[source] == theirs(source).replace('▁', ' '), ascii(source)
        if all(unicodedata.category(c) != 'Cn' for c in source):  # newer than the Unicode of this Python
            assert ours(source) == found[source], ascii(source)


def test_what_cannot_be_expressed_is_refused():
    with pytest.raises(ConfigError, match='which no tokenizer.json can express'):
        charsmap.normalizers(table('nmt_nfkc_cf'))  # İ of I and a dot, although I alone becomes i
    content = table('nfkc')
    for damaged in (content[:2000], b'\xff' * 64, content[:-2000], b'\x08\0\0\0' + bytes(range(97, 105))):
        with pytest.raises(ConfigError, match='is damaged'):
            charsmap.normalizers(damaged)
