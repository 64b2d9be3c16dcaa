"""The text of a file as a stream of UTF-8, told by the first bytes of the file and not by its name.

gzip, xz, lzma, bzip2 and zstandard are decompressed, however many members follow one another; UTF-16 and UTF-32 with a
byte order mark are decoded; the byte order mark of UTF-8 is left out. Archives, columnar files, pickles and other files
that hold no text of their own are refused by their name, each with what to do. A compressed file that ends early, is
damaged, or has something else behind its end is an error: a part of a text is never taken for the whole.
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
    import zstandard  # an extra
except ModuleNotFoundError:
    zstandard = None

HEAD_BYTES = 1 << 16  # so much is looked at to tell what a file is
BUFFER_BYTES = 1 << 20
_PIECE = 1 << 16  # of compressed bytes; at most a thousand times as much comes out of gzip
_MOST_CONTROL_CHARACTERS = 0.05  # of the first bytes; those of random bytes are a tenth

_UNPACK = 'Unpack it, and name the text files inside'
_EXPORT = 'Write its texts as JSON lines or CSV first'
_NO_TEXT = 'Name files of plain text, JSON lines or CSV'
# Where the bytes stand, which they are, what has them, the cure.
_REFUSED: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b'PK\x03\x04', 'a ZIP archive (or .xlsx, .docx, .epub, .npz, which are ones)', _UNPACK),
    (0, b'PK\x05\x06', 'an empty ZIP archive', _UNPACK),
    (257, b'ustar', 'a tar archive', _UNPACK),
    (0, b'7z\xbc\xaf\x27\x1c', 'a 7z archive', _UNPACK),
    (0, b'Rar!\x1a\x07', 'a RAR archive', _UNPACK),
    (0, b'\x04\x22\x4d\x18', 'compressed by lz4', 'Decompress it first: lz4 -d'),
    (0, b'\x1f\x9d', 'compressed by compress', 'Decompress it first: uncompress'),
    (0, b'LZIP\x01', 'compressed by lzip', 'Decompress it first: lzip -d'),
    (0, b'\x89LZO\0', 'compressed by lzop', 'Decompress it first: lzop -d'),
    (0, b'PAR1\x15', 'a Parquet file', _EXPORT),
    (0, b'ARROW1\0\0', 'an Arrow file', _EXPORT),
    (0, b'\xff\xff\xff\xff', 'a stream of Arrow, as Hugging Face data sets are stored', _EXPORT),
    (0, b'Obj\x01', 'an Avro file', _EXPORT),
    (0, b'\x83\xaf\x70\xd1\x0d\x88\x4a\x3f', 'a file of Riegeli or ArrayRecord', 'Name the data set by tfds:NAME'),
    (0, b'SQLite format 3\0', 'a SQLite data base', _EXPORT),
    (0, b'\x89HDF\r\n', 'an HDF5 file', _EXPORT),
    (0, b'\x93NUMPY', 'a NumPy array', _EXPORT),
    *((0, bytes([0x80, version]), 'a pickle', _EXPORT) for version in range(2, 6)),
    (0, b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'a document of an old Microsoft Office', 'Save it as plain text or CSV'),
    (0, b'{\\rtf', 'a document in RTF', 'Save it as plain text'),
    (0, b'%PDF-', 'a PDF document', 'Extract its text first: pdftotext'),
    (0, b'\x7fELF', 'a program', _NO_TEXT),
    (0, b'\x89PNG\r\n', 'a picture', _NO_TEXT),
    (0, b'\xff\xd8\xff', 'a picture', _NO_TEXT),
    (
        0, git_lfs.FIRST_LINE, 'a pointer of Git LFS and not the data',
        'Fetch the data: git lfs pull',
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Compression:
    """A way to compress.

    Attributes:
      name: of it.
      suffixes: that promise it, in lower case.
      magic: the first bytes of a member.
      open: makes a decompressor, with `decompress`, `eof` and `unused_data`.
      errors: what a decompressor raises for damage.
      bounded: whether `decompress` takes the most bytes to give, and `needs_input` says whether it has more.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: re.Pattern[bytes]
    open: Callable[[], Any]
    errors: tuple[type[Exception], ...]
    bounded: bool = False


def _zstandard_decompressor() -> Any:
    # `zstd --long=31` writes windows of 2 GiB; no more is taken of them than the text fills.
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
    _Compression(  # or a frame to be skipped, with which parallel compressors begin
        'zstandard', ('.zst', '.zstd'), re.compile(rb'\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18'),
        _zstandard_decompressor, (zstandard.ZstdError,) if zstandard else (),
    ),
)  # fmt: skip
_MAGIC_BYTES = 10  # the longest magic

_BYTE_ORDER_MARKS = (  # that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF32_LE, 'utf-32-le'),
    (codecs.BOM_UTF32_BE, 'utf-32-be'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
)


def open_text(path: pathlib.Path) -> BinaryIO:
    """Opens a file to read its text in UTF-8 (or in what stands there instead: that is not checked).

    Raises:
      ConfigError: for a file that holds no text; and when reading comes to a place where the file is damaged.
      OSError: for a file that cannot be read.
    """
    file = open(path, 'rb', buffering=BUFFER_BYTES)  # noqa: SIM115, who reads it closes it
    try:
        return _open(file, path)
    except BaseException:
        file.close()
        raise


def suffix(path: pathlib.Path, known: Iterable[str]) -> str:
    """The last suffix of a file name that is one of `known`, whatever its case and what follows; '' where none is."""
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
        what = f'those of {found.name}' if found else 'others'
        raise ConfigError(
            f'{path} is damaged or cut off, or has a wrong name: that promises {promised.name}, and its first bytes '
            f'are {what}. Copy it again, or rename it'
        )
    if found and found.name == 'zstandard' and zstandard is None:
        raise ConfigError(f"{path} needs the package zstandard: pip install 'mlm_jax[zstd]'")


def _until(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The first chunks, of `size` bytes or more together where there are so many."""
    while size > 0 and (chunk := next(chunks, b'')):
        size -= len(chunk)
        yield chunk


def _decompressed(file: BinaryIO, compression: _Compression, path: pathlib.Path) -> Iterator[bytes]:
    """What a compressed file holds: that of all its members. Zeros between them and behind the last are padding."""
    data = file.read(_PIECE)
    while data:
        decompressor = compression.open()
        while not decompressor.eof:
            if not data:
                raise ConfigError(f'{path} is damaged or cut off: its {compression.name} has no end; copy it again')
            yield from filter(None, _step(decompressor, data, compression, path))
            data = decompressor.unused_data if decompressor.eof else file.read(_PIECE)
        data = _next_member(data, file)
        if data and not compression.magic.match(data):
            raise ConfigError(
                f'{path} is damaged or cut off: behind the end of its {compression.name} stands something else; copy '
                'it again, or cut that off'
            )


def _step(decompressor, data: bytes, compression: _Compression, path: pathlib.Path) -> Iterator[bytes]:
    """What comes out of a piece of compressed bytes."""
    try:
        if not compression.bounded:
            yield decompressor.decompress(data)
            return
        yield decompressor.decompress(data, BUFFER_BYTES)
        while not (decompressor.eof or decompressor.needs_input):
            yield decompressor.decompress(b'', BUFFER_BYTES)
    except (*compression.errors, MemoryError) as error:
        raise ConfigError(f'{path} is damaged or cut off ({error}){_cure(str(error))}') from None


def _cure(error: str) -> str:
    if re.search('memory|window', error, re.IGNORECASE):
        return '; or its window is larger than the memory here: compress it anew, without --long'
    return '; copy it again'


def _next_member(data: bytes, file: BinaryIO) -> bytes:
    """The first bytes of what follows a member, without padding; b'' at the end."""
    while True:
        data = data.lstrip(b'\0')
        if len(data) >= _MAGIC_BYTES or not (more := file.read(_PIECE)):
            return data
        data += more


def _recoded(chunks: Iterable[bytes], encoding: str, path: pathlib.Path) -> Iterator[bytes]:
    """Text in another encoding, with its byte order mark, as UTF-8. Half a character stays one, as no UTF-8 has it."""
    name = encoding.upper()
    decoder, skip, is_empty = codecs.getincrementaldecoder(encoding)('surrogatepass'), 1, True
    for chunk in itertools.chain(chunks, [b'']):
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise ConfigError(f'{path} is damaged or cut off: it begins as {name}, but {error}') from None
        if text[skip:]:
            yield text[skip:].encode(errors='surrogatepass')
            is_empty = False
        skip = skip and not text
    if is_empty:
        raise ConfigError(f'{path} is not UTF-8: it holds the byte order mark of {name}, and no text')


def _refuse_what_is_no_text(head: bytes, path: pathlib.Path, inside: str) -> None:
    for start, magic, name, cure in _REFUSED:
        if head.startswith(magic, start):
            raise ConfigError(f'{path} is no text: it is {name}{inside}. {cure}')
    if any(head.startswith(mark) for mark, _ in _BYTE_ORDER_MARKS):
        return
    if len(head) >= 16 and not head.strip(b'\0'):
        raise ConfigError(f'{path} begins with {len(head):,} zero bytes: it was not copied to its end; copy it again')
    if encoding := _wide_encoding(head):
        raise ConfigError(
            f'{path} looks like {encoding} without a byte order mark. Convert it: '
            f"iconv -f {encoding} -t UTF-8 '{path.name}' > …"
        )
    share = len(_CONTROL_CHARACTER.findall(head)) / max(len(head), 64)
    if share > _MOST_CONTROL_CHARACTERS and not _is_utf8(head):
        raise ConfigError(
            f'{path} is no text: {share:.0%} of its first {len(head):,} bytes are control characters, and it is not '
            f'UTF-8. {_NO_TEXT}'
        )


_CONTROL_CHARACTER = re.compile(rb'[\x00-\x07\x0e-\x1a\x1c-\x1f]')


def _wide_encoding(head: bytes) -> str | None:
    """The encoding of two or four bytes a character in which there are as many zeros, at one place of each, as here."""
    head = head[:4096]
    if len(head) < 16:
        return None
    zeros = [head[place::4].count(0) / len(head[place::4]) > 0.9 for place in range(4)]
    patterns = {
        (False, True, True, True): 'UTF-32LE', (True, True, True, False): 'UTF-32BE',
        (False, True, False, True): 'UTF-16LE', (True, False, True, False): 'UTF-16BE',
    }  # fmt: skip
    return patterns.get(tuple(zeros))


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder('utf-8')().decode(head)  # a character may be cut at the end of the head
    except UnicodeDecodeError:
        return False
    return True


class _Chunks(io.RawIOBase):
    """Chunks of bytes as a file; closing it closes the one that they come from."""

    def __init__(self, chunks: Iterator[bytes], file: BinaryIO):
        self._chunks, self._file, self._rest = chunks, file, memoryview(b'')

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        filled = 0  # all of the buffer, while there is more: who looks at its start shall see enough
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
