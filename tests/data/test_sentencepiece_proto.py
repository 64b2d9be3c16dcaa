"""The format of SentencePiece models: the same fields and bytes as the generated code of the package sentencepiece."""

import io

import pytest
import sentencepiece

from mlm_jax.data import sentencepiece_proto

generated = pytest.importorskip(
    'sentencepiece.sentencepiece_model_pb2', reason='it needs a newer protobuf', exc_type=Exception
)
READ = (
    'model_type', 'treat_whitespace_as_suffix', 'byte_fallback', 'unk_id', 'bos_id', 'eos_id', 'pad_id', 'name',
    'precompiled_charsmap', 'add_dummy_prefix', 'remove_extra_whitespaces', 'escape_whitespaces', 'piece', 'score',
    'type',
)  # fmt: skip


def fields(descriptor):
    return {(field.number, field.name, field.is_repeated) for field in descriptor.fields}


def test_the_fields_are_those_of_the_package():
    file = sentencepiece_proto.ModelProto.DESCRIPTOR.file
    theirs = {**generated.DESCRIPTOR.message_types_by_name}
    theirs['SentencePiece'] = generated.ModelProto.SentencePiece.DESCRIPTOR
    assert {*file.message_types_by_name} == {'TrainerSpec', 'NormalizerSpec', 'SentencePiece', 'ModelProto'}
    for name, ours in file.message_types_by_name.items():
        assert fields(ours) == fields(theirs[name])
        for field in ours.fields:
            if field.name in READ:
                assert field.default_value == theirs[name].fields_by_name[field.name].default_value, field.name
    kinds = {value: name.lower() for name, value in generated.TrainerSpec.ModelType.items()}
    assert kinds == sentencepiece_proto.KINDS
    for name, value in generated.ModelProto.SentencePiece.Type.items():
        assert getattr(sentencepiece_proto, name) == value


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_models_are_written_in_the_same_bytes(kind):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(f'some words {i} and others' for i in range(200)), model_writer=model, vocab_size=300,
        model_type=kind, byte_fallback=True, hard_vocab_limit=False, user_defined_symbols=['<x>'],
        control_symbols=['[MASK]'], minloglevel=2,
    )  # fmt: skip
    theirs, ours = (
        proto.FromString(model.getvalue()) for proto in (generated.ModelProto, sentencepiece_proto.ModelProto)
    )
    for proto in (theirs, ours):
        proto.pieces.add(piece='new', score=-1.5)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    assert [piece.type for piece in ours.pieces] == [piece.type for piece in theirs.pieces]
