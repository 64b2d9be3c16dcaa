"""Opens a file as a stream of UTF-8 text; the first bytes of the file, not its name, determine its format.

gzip, xz, lzma, bzip2 and zstandard files are decompressed, even if they consist of several members. UTF-16 and UTF-32
with a byte order mark are decoded; the byte order mark of UTF-8 is removed. Archives, columnar files, pickles and other
files that are not text raise an error that names the format and says what to do. A compressed file that is truncated or
damaged, or has other data after its end, is an error: a part of a text is never mistaken for the whole text.
"""

import bz2
import codecs
import dataclasses
import io
import itertools
import lzma
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from mlm_jax.files import git_lfs
from mlm_jax.files.errors import ConfigError

try:
    import zstandard  # an optional extra
except ModuleNotFoundError:
    zstandard = None  # type: ignore[assignment]  # mypy has no type for an optional module

HEAD_BYTES = 1 << 16  # so many bytes are examined to recognize the format of a file
BUFFER_BYTES = 1 << 20
_PIECE = 1 << 16  # compressed bytes read at a time; gzip expands them at most about a thousandfold
# As fractions of the first bytes; in random bytes it is about 0.1.
_MOST_CONTROL_CHARACTERS, _MOST_IN_UTF8 = 0.05, 0.1

_UNPACK = 'Unpack it and name the text files inside'
_EXPORT = 'Write its texts as JSON lines or CSV first'
_COLUMNS = 'As a corpus, name it {}:GLOB; elsewhere, write its texts as JSON lines or CSV first'
_NO_TEXT = 'Name files that hold plain text, JSON lines or CSV'
# Offset of the bytes, the bytes, the format that they identify, what the user can do.
_REFUSED: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b'PK\x03\x04', 'a ZIP archive (.xlsx, .docx, .epub and .npz files are such archives)', _UNPACK),
    (0, b'PK\x05\x06', 'an empty ZIP archive', _UNPACK),
    (257, b'ustar', 'a tar archive', _UNPACK),
    (0, b'7z\xbc\xaf\x27\x1c', 'a 7z archive', _UNPACK),
    (0, b'Rar!\x1a\x07', 'a RAR archive', _UNPACK),
    (0, b'\x04\x22\x4d\x18', 'compressed by lz4', 'Decompress it first: lz4 -d'),
    (0, b'\x1f\x9d', 'compressed by compress', 'Decompress it first: uncompress'),
    (0, b'LZIP\x01', 'compressed by lzip', 'Decompress it first: lzip -d'),
    (0, b'\x89LZO\0', 'compressed by lzop', 'Decompress it first: lzop -d'),
    (0, b'PAR1\x15', 'a Parquet file', _COLUMNS.format('parquet')),
    (0, b'ARROW1\0\0', 'an Arrow file', _COLUMNS.format('arrow')),
    (0, b'\xff\xff\xff\xff', 'an Arrow stream, as in stored Hugging Face data sets', _COLUMNS.format('arrow')),
    (0, b'Obj\x01', 'an Avro file', _EXPORT),
    (0, b'\x83\xaf\x70\xd1\x0d\x88\x4a\x3f', 'a Riegeli or ArrayRecord file', 'Name the data set as tfds:NAME'),
    (0, b'SQLite format 3\0', 'a SQLite database', _EXPORT),
    (0, b'\x89HDF\r\n', 'an HDF5 file', _EXPORT),
    (0, b'\x93NUMPY', 'a NumPy array', _EXPORT),
    *((0, bytes([0x80, version]), 'a pickle', _EXPORT) for version in range(2, 6)),
    (0, b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'an old Microsoft Office document', 'Save it as plain text or CSV'),
    (0, b'{\\rtf', 'an RTF document', 'Save it as plain text'),
    (0, b'%PDF-', 'a PDF document', 'Extract its text first: pdftotext'),
    (0, b'\x7fELF', 'an executable program', _NO_TEXT),
    (0, b'\x89PNG\r\n', 'an image', _NO_TEXT),
    (0, b'\xff\xd8\xff', 'an image', _NO_TEXT),
    (
        0, git_lfs.FIRST_LINE, 'a Git LFS pointer, not the data itself',
        'Fetch the data: git lfs pull',
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Compression:
    """A compression format.

    Attributes:
      name: its name.
      suffixes: the file suffixes that stand for it, in lower case.
      magic: a pattern for the first bytes of a member.
      open: creates a decompressor with `decompress`, `eof` and `unused_data`.
      errors: the exceptions that a decompressor raises for damaged data.
      bounded: whether `decompress` accepts a maximum output size and the decompressor has `needs_input`.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: re.Pattern[bytes]
    open: Callable[[], Any]
    errors: tuple[type[Exception], ...]
    bounded: bool = False


def _zstandard_decompressor() -> Any:
    # `zstd --long=31` uses windows of 2 GiB; a smaller text takes only as much memory as it needs.
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


_COMPRESSIONS = (
    _Compression(
        'gzip', ('.gz', '.gzip', '.bgz'), re.compile(rb'\x1f\x8b\x08'), lambda: zlib.decompressobj(31), (zlib.error,)
    ),
    _Compression('xz', ('.xz',), re.compile(rb'\xfd7zXZ\0'), lzma.LZMADecompressor, (lzma.LZMAError,), bounded=True),
    _Compression(
        'lzma', ('.lzma',), re.compile(rb'\x5d\0\0'), lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
        (lzma.LZMAError,), bounded=True,
    ),
    _Compression(
        'bzip2', ('.bz2', '.bzip2'), re.compile(rb'BZh[1-9](?:1AY&SY|\x17rE8P\x90)'), bz2.BZ2Decompressor,
        (OSError, ValueError), bounded=True,
    ),
    _Compression(  # parallel compressors begin with a skippable frame, the second pattern
        'zstandard', ('.zst', '.zstd'), re.compile(rb'\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18'),
        _zstandard_decompressor, (zstandard.ZstdError,) if zstandard else (),
    ),
)  # fmt: skip
_MAGIC_BYTES = 10  # the longest magic

_BYTE_ORDER_MARKS = (  # UTF-32 first, because its mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_LE, 'utf-32-le'),
    (codecs.BOM_UTF32_BE, 'utf-32-be'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
)


def open_text(path: pathlib.Path, start: int = 0) -> BinaryIO:
    """Opens a file to read its text as UTF-8; whether the bytes are valid UTF-8 is not checked.

    Args:
      path: the file.
      start: the byte at which reading begins. Only a file whose stream is `seekable` can be read from another byte than
        the first: one that is neither compressed nor in UTF-16 or UTF-32.

    Raises:
      ConfigError: if the file is not text, or, while it is read, where it is damaged.
      OSError: if the file cannot be read.
    """
    file = path.open('rb', buffering=BUFFER_BYTES)
    try:
        stream = _open(file, path)
        if start:
            stream.seek(start)
        return stream
    except BaseException:
        file.close()
        raise


def suffix(path: pathlib.Path, known: Iterable[str]) -> str:
    """The last suffix of a file name that is in `known`, in any case and before any others; '' if there is none."""
    found = [part for part in map(str.lower, path.suffixes) if part in known]
    return found[-1] if found else ''


def _open(file: BinaryIO, path: pathlib.Path) -> BinaryIO:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    compression = _compression_of(head)
    _check_name(path, compression)
    chunks = None
    if compression:
        chunks = _decompressed(file, compression, path)
        first = list(_until(chunks, HEAD_BYTES))
        head, chunks = b''.join(first), itertools.chain(first, chunks)
        if again := _compression_of(head):
            raise ConfigError(f'{path} is compressed twice, {again.name} inside {compression.name}: decompress it once')
    _refuse_what_is_no_text(head, path, f' inside {compression.name}' if compression else '')
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if encoding:
        chunks = _recoded(chunks or iter(lambda: file.read(BUFFER_BYTES), b''), encoding, path)
    stream = io.BufferedReader(_Chunks(chunks, file), BUFFER_BYTES) if chunks else file
    if not encoding and head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    return stream


def _compression_of(head: bytes) -> _Compression | None:
    return next((c for c in _COMPRESSIONS if c.magic.match(head)), None)


def _check_name(path: pathlib.Path, found: _Compression | None) -> None:
    promised = next((c for c in _COMPRESSIONS if path.suffix.lower() in c.suffixes), None)
    if promised and promised is not found:
        what = f'those of {found.name}' if found else f'not those of {promised.name}'
        raise ConfigError(
            f'{path} is damaged, truncated or misnamed: its name says {promised.name}, but its first bytes are '
            f'{what}. Copy the file again, or rename it'
        )
    if found and found.name == 'zstandard' and zstandard is None:
        raise ConfigError(f"{path} needs the package zstandard: pip install 'mlm_jax[zstd]'")


def _until(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The first chunks: as many as are needed for `size` bytes, or all of them."""
    while size > 0 and (chunk := next(chunks, b'')):
        size -= len(chunk)
        yield chunk


def _decompressed(file: BinaryIO, compression: _Compression, path: pathlib.Path) -> Iterator[bytes]:
    """The decompressed content of all members of a file; zeros between members and after the last are padding."""
    data = file.read(_PIECE)
    while data:
        decompressor = compression.open()
        while not decompressor.eof:
            if not data:
                raise ConfigError(
                    f'{path} is damaged or truncated: its {compression.name} data has no end. Copy it again'
                )
            yield from filter(None, _step(decompressor, data, compression, path))
            data = decompressor.unused_data if decompressor.eof else file.read(_PIECE)
        data = _next_member(data, file)
        if data and not compression.magic.match(data):
            raise ConfigError(
                f'{path} is damaged: other data follows the end of its {compression.name} data; copy the file again, '
                'or remove that data'
            )


def _step(decompressor: Any, data: bytes, compression: _Compression, path: pathlib.Path) -> Iterator[bytes]:
    """Decompresses a piece of compressed bytes."""
    damage: tuple[type[Exception], ...] = (*compression.errors, MemoryError)
    try:
        if not compression.bounded:
            yield decompressor.decompress(data)
            return
        yield decompressor.decompress(data, BUFFER_BYTES)
        while not (decompressor.eof or decompressor.needs_input):
            yield decompressor.decompress(b'', BUFFER_BYTES)
    except damage as error:
        raise ConfigError(f'{path} is damaged or truncated ({error}){_cure(str(error))}') from None


def _cure(error: str) -> str:
    if re.search('memory|window', error, re.IGNORECASE):
        return '; or its window is larger than the available memory: compress the file again without --long'
    return '; copy it again'


def _next_member(data: bytes, file: BinaryIO) -> bytes:
    """The first bytes after a member, without padding; b'' at the end of the file."""
    while True:
        data = data.lstrip(b'\0')
        if len(data) >= _MAGIC_BYTES or not (more := file.read(_PIECE)):
            return data
        data += more


def _recoded(chunks: Iterable[bytes], encoding: str, path: pathlib.Path) -> Iterator[bytes]:
    """Converts text with a byte order mark to UTF-8; a lone surrogate stays one, which is then invalid UTF-8."""
    name = encoding.upper()
    decoder, skip, is_empty = codecs.getincrementaldecoder(encoding)('surrogatepass'), 1, True
    for chunk in itertools.chain(chunks, [b'']):
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise ConfigError(f'{path} is damaged or truncated: it begins as {name}, but {error}') from None
        if text[skip:]:
            yield text[skip:].encode(errors='surrogatepass')
            is_empty = False
        skip = skip and not text
    if is_empty:
        raise ConfigError(f'{path} is not UTF-8: it holds the byte order mark of {name} but no text')


def _refuse_what_is_no_text(head: bytes, path: pathlib.Path, inside: str) -> None:
    for start, magic, name, cure in _REFUSED:
        if head.startswith(magic, start):
            raise ConfigError(f'{path} is not a text file: it is {name}{inside}. {cure}')
    if any(head.startswith(mark) for mark, _ in _BYTE_ORDER_MARKS):
        return
    if len(head) >= 16 and not head.strip(b'\0'):
        raise ConfigError(f'{path} begins with {len(head):,} zero bytes: it was not copied completely; copy it again')
    if encoding := _wide_encoding(head):
        raise ConfigError(
            f'{path} looks like {encoding} without a byte order mark. Convert it: '
            f"iconv -f {encoding} -t UTF-8 '{path.name}' > …"
        )
    share, is_utf8 = len(_CONTROL_CHARACTER.findall(head)) / max(len(head), 64), _is_utf8(head)
    if share > (_MOST_IN_UTF8 if is_utf8 else _MOST_CONTROL_CHARACTERS):
        raise ConfigError(
            f'{path} is not a text file: {share:.0%} of its first {len(head):,} bytes are control characters'
            f'{"" if is_utf8 else ", and it is not UTF-8"}. {_NO_TEXT}'
        )


_MOST_HIGH_BYTES = 0.8  # others are of punctuation and symbols
_CONTROL_CHARACTER = re.compile(rb'[\x00-\x07\x0e-\x1a\x1c-\x1f]')


def _wide_encoding(head: bytes) -> str | None:
    """The encoding with two or four bytes per character that explains at which places zero bytes occur.

    In UTF-16, one byte of a character is below 32 in most scripts but those of East Asia, and zero in spaces. All bytes
    of such a text can be valid UTF-8, as in Russian, Arabic, Hindi and Thai.
    """
    head = head[:4096]
    if len(head) < 16:
        return None
    parts = (head[place::4] for place in range(4))
    zeros = tuple(part.count(0) / len(part) > 0.9 for part in parts)
    patterns: dict[tuple[bool, ...], str] = {
        (False, True, True, True): 'UTF-32LE', (True, True, True, False): 'UTF-32BE',
    }  # fmt: skip
    return patterns.get(zeros) or _utf_16(head)


def _utf_16(head: bytes) -> str | None:
    even, odd = head[::2], head[1::2]
    for name, high, low in (('UTF-16LE', odd, even), ('UTF-16BE', even, odd)):
        share, other = (sum(byte < 32 for byte in part) / len(part) for part in (high, low))
        if share > _MOST_HIGH_BYTES and other < share / 2 and 0 in high:
            return name
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder('utf-8')().decode(head)  # the last character of the head may be incomplete
    except UnicodeDecodeError:
        return False
    return True


class _Chunks(io.RawIOBase):
    """A file whose content is a sequence of chunks; closing it closes the file that the chunks come from."""

    def __init__(self, chunks: Iterator[bytes], file: BinaryIO):
        self._chunks, self._file, self._rest = chunks, file, memoryview(b'')

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0  # fill the whole buffer if possible, so that `peek` sees enough of the start
        while filled < len(buffer) and (self._rest or self._next()):
            size = min(len(buffer) - filled, len(self._rest))
            buffer[filled : filled + size] = self._rest[:size]
            filled, self._rest = filled + size, self._rest[size:]
        return filled

    def _next(self) -> bool:
        self._rest = memoryview(next(self._chunks, b''))
        return len(self._rest) > 0

    def close(self) -> None:
        self._file.close()
        super().close()
