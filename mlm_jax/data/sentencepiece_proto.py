"""The format of SentencePiece models, a protocol buffer (`sentencepiece_model.proto` of google/sentencepiece).

The package sentencepiece has it as generated code, too, which refuses every protobuf that is older than the one that it
was generated with, such as the one that Apache Beam needs. Messages that are made of this table work with any. Fields
that are not in it are kept as they are; the others are in it, so that a model is written in the same bytes as there.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Kinds of pieces, and of models.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
KINDS = {1: 'unigram', 2: 'bpe', 3: 'word', 4: 'char'}

# Message → 'number name type [default]' of its fields; a star follows the type of one that is repeated. An enum is an
# int32 here, which is the same in bytes. Only the defaults are given that are read.
_MESSAGES = {
    'TrainerSpec': """
        1 input string*
        2 model_prefix string
        3 model_type int32 1
        4 vocab_size int32
        5 accept_language string*
        6 self_test_sample_size int32
        7 input_format string
        10 character_coverage float
        11 input_sentence_size uint64
        12 mining_sentence_size int32
        13 training_sentence_size int32
        14 seed_sentencepiece_size int32
        15 shrinking_factor float
        16 num_threads int32
        17 num_sub_iterations int32
        18 max_sentence_length int32
        19 shuffle_input_sentence bool
        20 max_sentencepiece_length int32
        21 split_by_unicode_script bool
        22 split_by_whitespace bool
        23 split_by_number bool
        24 treat_whitespace_as_suffix bool
        25 split_digits bool
        26 allow_whitespace_only_pieces bool
        30 control_symbols string*
        31 user_defined_symbols string*
        32 vocabulary_output_piece_score bool
        33 hard_vocab_limit bool
        34 use_all_vocab bool
        35 byte_fallback bool
        36 required_chars string
        40 unk_id int32
        41 bos_id int32 1
        42 eos_id int32 2
        43 pad_id int32 -1
        44 unk_surface string
        45 unk_piece string
        46 bos_piece string
        47 eos_piece string
        48 pad_piece string
        49 train_extremely_large_corpus bool
        50 enable_differential_privacy bool
        51 differential_privacy_noise_level float
        52 differential_privacy_clipping_threshold uint64
        53 pretokenization_delimiter string
        54 seed_sentencepieces_file string
        55 auto_character_coverage bool
    """,
    'NormalizerSpec': """
        1 name string
        2 precompiled_charsmap bytes
        3 add_dummy_prefix bool true
        4 remove_extra_whitespaces bool true
        5 escape_whitespaces bool true
        6 normalization_rule_tsv string
    """,
    'SentencePiece': """
        1 piece string
        2 score float
        3 type int32 1
    """,
    'ModelProto': """
        1 pieces SentencePiece*
        2 trainer_spec TrainerSpec
        3 normalizer_spec NormalizerSpec
        5 denormalizer_spec NormalizerSpec
    """,
}
_PACKAGE = 'mlm_jax.sentencepiece'


def _model_class() -> Any:
    """The class of `ModelProto`."""
    file = descriptor_pb2.FileDescriptorProto(name='mlm_jax/sentencepiece.proto', package=_PACKAGE, syntax='proto2')
    for name, lines in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for line in filter(None, map(str.strip, lines.splitlines())):
            _add_field(message, *line.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'{_PACKAGE}.ModelProto'))


def _add_field(message: Any, number: str, name: str, kind: str, default: str | None = None) -> None:
    types, base = descriptor_pb2.FieldDescriptorProto, kind.rstrip('*')
    field = message.field.add(name=name, number=int(number), default_value=default)
    field.label = types.LABEL_REPEATED if kind.endswith('*') else types.LABEL_OPTIONAL
    if base in _MESSAGES:
        field.type, field.type_name = types.TYPE_MESSAGE, f'.{_PACKAGE}.{base}'
    else:
        field.type = types.Type.Value(f'TYPE_{base.upper()}')


ModelProto = _model_class()
