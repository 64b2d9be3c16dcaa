"""Reads the texts in one column of Parquet and Arrow files; needs pyarrow (extra `parquet`).

A part of a Parquet file is a run of its row groups, and a part of an Arrow file a run of its record batches. An Arrow
stream, as the package `datasets` stores it, can be read from its start only, so it has one part.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from mlm_jax.files.errors import ConfigError

KINDS = ('parquet', 'arrow')
_ROWS_AT_A_TIME = 1024
_BUFFER_BYTES = 1 << 20
_ARROW_FILE = b'ARROW1'
_STREAM_ENDS = (b'\xff\xff\xff\xff\0\0\0\0', b'\0\0\0\0')  # the second one before Arrow 0.15
# Kind → the first bytes of its files → what they are.
_MAGIC = {
    'parquet': {b'PAR1': 'a Parquet file'},
    'arrow': {_ARROW_FILE: 'an Arrow file', b'\xff\xff\xff\xff': 'an Arrow stream'},
}


def num_units(path: pathlib.Path, kind: str) -> int:
    """The number of row groups or record batches, or 1 for an Arrow stream; raises ConfigError as `read` does."""
    with path.open('rb') as file:
        magic = _check_magic(file, path, kind)
        try:
            if kind == 'parquet':
                return _parquet(file).num_row_groups
            return _ipc().open_file(file).num_record_batches if magic == _ARROW_FILE else 1
        except _errors() as error:
            if getattr(error, 'errno', None) is not None:
                raise  # it cannot be read at all
            raise _damaged(path, error) from error


def read(path: pathlib.Path, kind: str, text_key: str, index: int, count: int) -> Iterator[bytes]:
    """Yields the texts of one part of a file; null is an empty text.

    Args:
      path: the file.
      kind: 'parquet' or 'arrow'.
      text_key: the name of the column; 'meta.text' also means the field `text` of the column `meta`.
      index: the number of the part, from 0.
      count: the number of parts, at most `num_units`.

    Raises:
      ConfigError: if pyarrow is missing, the file is damaged or of another kind, or the column is missing or holds no
        text.
      OSError: if the file cannot be read.
    """
    with path.open('rb') as file:
        magic = _check_magic(file, path, kind)
        try:
            if kind == 'parquet':
                batches = _row_groups(file, path, text_key, index, count)
            elif magic == _ARROW_FILE:
                batches = _record_batches(file, path, text_key, index, count)
            else:
                batches = _stream(file, path, text_key)
            for texts in batches:
                yield from (text or b'' for text in texts)
        except _errors() as error:
            if getattr(error, 'errno', None) is not None:
                raise  # it cannot be read at all
            raise _damaged(path, error) from error


def _row_groups(file: BinaryIO, path: pathlib.Path, key: str, index: int, count: int) -> Iterator[list[bytes | None]]:
    reader = _parquet(file)
    names = _find(reader.schema_arrow, key, path)
    groups = range(index * reader.num_row_groups // count, (index + 1) * reader.num_row_groups // count)
    if groups:
        for batch in reader.iter_batches(_ROWS_AT_A_TIME, groups, ['.'.join(names)], use_threads=False):
            yield _texts(batch, names)


def _record_batches(
    file: BinaryIO, path: pathlib.Path, key: str, index: int, count: int
) -> Iterator[list[bytes | None]]:
    names, options = _only(_ipc().open_file(file).schema, key, path)
    file.seek(0)
    reader = _ipc().open_file(file, options=options)
    total = reader.num_record_batches
    for number in range(index * total // count, (index + 1) * total // count):
        yield _texts(reader.get_batch(number), names)


def _stream(file: BinaryIO, path: pathlib.Path, key: str) -> Iterator[list[bytes | None]]:
    names, options = _only(_ipc().open_stream(file).schema, key, path)
    file.seek(0)
    reader = _ipc().open_stream(file, options=options)
    at = file.tell()
    for batch in reader:
        at = file.tell()
        yield _texts(batch, names)
    file.seek(at)
    if not file.read(8).startswith(_STREAM_ENDS):  # pyarrow takes the end of the file for the end of the stream
        raise ConfigError(
            f'{path} is truncated: its Arrow stream has no end, so what wrote it was interrupted. Write it again, as '
            'by save_to_disk of the package datasets, or copy it again'
        )


def _only(schema: Any, key: str, path: pathlib.Path) -> tuple[tuple[str, ...], Any]:
    """The names that lead to a column, and the options with which nothing else is read."""
    names = _find(schema, key, path)
    return names, _ipc().IpcReadOptions(included_fields=[schema.names.index(names[0])])


def _find(schema: Any, key: str, path: pathlib.Path) -> tuple[str, ...]:
    """The names that lead to the column of texts; raises ConfigError if there is no such column."""
    types = _pyarrow().types
    names = (key,) if key in schema.names else tuple(key.split('.'))
    fields, found = {field.name: field.type for field in schema}, None
    for name in names:
        found = fields.get(name)
        fields = {field.name: field.type for field in found} if found is not None and types.is_struct(found) else {}
    columns = ', '.join(f'{name} ({kind})' for name, kind in _leaves(schema))
    if found is None:
        raise ConfigError(f'{path} has no column {key!r}; its columns are {columns}. Set data.text_key')
    if schema.names.count(names[0]) > 1:
        raise ConfigError(f'{path} has {schema.names.count(names[0])} columns named {names[0]!r}; rename all but one')
    inner = found.value_type if types.is_dictionary(found) else found
    is_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    if not any(is_kind(inner) for is_kind in is_text):
        raise ConfigError(
            f'{path}: the column {key!r} holds {found}, not text; its columns are {columns}. Set data.text_key'
        )
    return names


def _leaves(fields: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for field in fields:
        if _pyarrow().types.is_struct(field.type):
            yield from _leaves(field.type, f'{prefix}{field.name}.')
        else:
            yield prefix + field.name, field.type


def _texts(batch: Any, names: tuple[str, ...]) -> list[bytes | None]:
    """The texts of a batch as they are stored; `corpora.clean` treats what is not UTF-8."""
    pa = _pyarrow()
    array = batch.column(names[0])
    for name in names[1:]:
        array = pa.compute.struct_field(array, name)
    if pa.types.is_dictionary(array.type):
        array.validate(full=True)
        array = array.dictionary_decode()
    array = array.cast(pa.large_binary())
    array.validate(full=True)  # the offsets in a damaged file may lead anywhere
    return array.to_pylist()


def _check_magic(file: BinaryIO, path: pathlib.Path, kind: str) -> bytes:
    head = file.read(8)
    file.seek(0)
    known = {magic: (of_kind, name) for of_kind, names in _MAGIC.items() for magic, name in names.items()}
    magic = next((magic for magic in known if head.startswith(magic)), b'')
    if magic in _MAGIC[kind]:
        return magic
    wanted = next(iter(_MAGIC[kind].values()))
    if magic:
        of_kind, name = known[magic]
        raise ConfigError(f'{path} is not {wanted} but {name}: name it as {of_kind}:GLOB')
    raise ConfigError(
        f'{path} is not {wanted}: it begins with {head!r}. If it holds text, name it by another kind of corpus, such '
        'as jsonl:GLOB; if not, copy it again'
    )


def _parquet(file: BinaryIO) -> Any:
    _pyarrow()
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES)


def _ipc() -> Any:
    return _pyarrow().ipc


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
    except ImportError:
        raise ConfigError("Parquet and Arrow files need the package pyarrow: pip install 'mlm_jax[parquet]'") from None
    return pyarrow


def _errors() -> tuple[type[Exception], ...]:
    return (_pyarrow().ArrowException, OSError, EOFError, MemoryError)


def _damaged(path: pathlib.Path, error: Exception) -> ConfigError:
    reason = ' '.join(str(error).split()) or type(error).__name__
    return ConfigError(f'{path} is damaged or truncated ({reason}); copy it again')
