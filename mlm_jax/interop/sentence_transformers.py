"""The files with which sentence-transformers makes one vector of each text."""

import json
import pathlib

POOLING_DIRECTORY = '1_Pooling'
_PACKAGE = 'sentence_transformers.models'
# Pooling of ours → the key of theirs.
MODES = {'mean': 'pooling_mode_mean_tokens', 'cls': 'pooling_mode_cls_token'}


def write(directory: pathlib.Path, width: int, max_length: int, pooling: str) -> None:
    """Writes modules.json, 1_Pooling/config.json and sentence_bert_config.json.

    Args:
      directory: that exists, with the model and its tokenizer.
      width: d, of the vectors.
      max_length: tokens, with special ones, at which texts are cut.
      pooling: a key of `MODES`.
    """
    modules = [
        {'idx': 0, 'name': '0', 'path': '', 'type': f'{_PACKAGE}.Transformer'},
        {'idx': 1, 'name': '1', 'path': POOLING_DIRECTORY, 'type': f'{_PACKAGE}.Pooling'},
    ]
    modes = {key: mode == pooling for mode, key in MODES.items()}
    (directory / POOLING_DIRECTORY).mkdir()
    for file, content in (
        ('modules.json', modules),
        (f'{POOLING_DIRECTORY}/config.json', {'word_embedding_dimension': width, **modes, 'include_prompt': True}),
        ('sentence_bert_config.json', {'max_seq_length': max_length, 'do_lower_case': False}),
    ):
        (directory / file).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
