"""The first bytes of a file say what it is: it is decompressed, decoded, or refused with the cure."""

import bz2
import gzip
import io
import lzma
import pickle
import re
import sqlite3
import tarfile
import zipfile

import numpy as np
import pytest
import zstandard

from mlm_jax.config import ConfigError
from mlm_jax.files import streams, text_files

TEXT = ''.join(
    f'This is line {i * i}; it is as long as others.\n' for i in range(25_000)
).encode()  # 1.2 MB: more than a buffer
COMPRESS = {'gz': gzip.compress, 'bz2': bz2.compress, 'xz': lzma.compress, 'zst': zstandard.compress}


def read(path, content=None) -> bytes:
    if content is not None:
        path.write_bytes(content)
    with streams.open_text(path) as file:
        return file.read()


@pytest.mark.parametrize('name', ['a.TXT.GZ', 'a.gzip', 'a.bz2', 'a.xz', 'a.zst', 'a.zstd', 'a.txt', 'a'])
def test_compressed_text_is_read_whatever_its_name(tmp_path, name):
    kinds = {'gzip': 'gz', 'zstd': 'zst'}
    kind = kinds.get(suffix := name.lower().rpartition('.')[2], suffix)
    compress = COMPRESS.get(kind, bz2.compress)
    assert read(tmp_path / name, compress(TEXT)) == TEXT
    in_parts = compress(TEXT[:1_100_000]) + compress(TEXT[1_100_000:])
    assert read(tmp_path / name, in_parts + bytes(512)) == TEXT, 'several members, and padding as tapes leave it'


def test_what_a_parallel_compressor_writes_first_is_skipped(tmp_path):
    skippable = b'\x50\x2a\x4d\x18' + (4).to_bytes(4, 'little') + b'size'
    assert read(tmp_path / 'a.zst', skippable + zstandard.compress(TEXT) + skippable) == TEXT


def test_a_long_window_is_read(tmp_path):
    """As `zstd --long=31` writes it: its window is more than zstandard takes by itself."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    content = bytearray(compressor.compress(TEXT) + compressor.flush())
    content[5] = (31 - 10) << 3  # the size of the window, as a power of two
    with pytest.raises(zstandard.ZstdError, match='too much memory'):
        zstandard.ZstdDecompressor().decompressobj().decompress(bytes(content))
    assert read(tmp_path / 'a.zst', bytes(content)) == TEXT


@pytest.mark.parametrize('kind', COMPRESS)
def test_damage_of_a_compressed_file_is_an_error(tmp_path, kind):
    path, whole = tmp_path / f'a.{kind}', COMPRESS[kind](TEXT[:300_000])
    for cut in (1, 20, len(whole) // 2, len(whole) - 12):
        with pytest.raises(ConfigError, match=rf'a.{kind} is damaged or truncated: its \w+ data has no end'):
            read(path, whole[:-cut])
    with pytest.raises(ConfigError, match=r'damaged: other data follows the end of its \w+ data'):
        read(path, whole + b'<html>')
    with pytest.raises(ConfigError, match=r'damaged, truncated or misnamed: its name says .* are not those of'):
        read(path, b'')
    with pytest.raises(ConfigError, match=r'are not those of \w+. Copy the file again, or rename it'):
        read(path, b'plain text\n')
    other = 'xz' if kind != 'xz' else 'gz'
    with pytest.raises(ConfigError, match=r'its first bytes are those of (xz|gzip)'):
        read(path, COMPRESS[other](b'text'))


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-be', 'utf-16-le', 'utf-32', 'utf-32-be', 'utf-8-sig'])
@pytest.mark.parametrize('compress', [None, *COMPRESS.values()])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding, compress):
    text = TEXT.decode()[:200_000] + 'naïve 😀\u2028'
    content = ('\ufeff' * encoding.endswith(('le', 'be')) + text).encode(encoding)
    assert read(tmp_path / 'a', compress(content) if compress else content) == text.encode()


def test_damage_of_utf_16_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match='damaged or truncated: it begins as UTF-16-LE, but .* truncated data'):
        read(tmp_path / 'a', 'some text'.encode('utf-16')[:-1])
    with pytest.raises(ConfigError, match='is not UTF-8: it holds the byte order mark of UTF-16-BE but no text'):
        read(tmp_path / 'a', b'\xfe\xff')
    half = '\ud83d'.encode('utf-16-le', 'surrogatepass')
    assert read(tmp_path / 'a', b'\xff\xfea\0' + half) == b'a\xed\xa0\xbd', 'for whoever counts repairs'


def archives(path):
    """Name of a kind → the bytes of such a file."""
    zipped, tarred, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, 'w') as file:
        file.writestr('a.txt', TEXT)
    with tarfile.open(fileobj=tarred, mode='w') as file:
        info = tarfile.TarInfo('a.txt')
        info.size = len(TEXT)
        file.addfile(info, io.BytesIO(TEXT))
    np.save(array, np.arange(9))
    database = sqlite3.connect(path / 'database')
    database.execute('create table t (x)')
    database.commit()
    database.close()
    return {
        'a ZIP archive': zipped.getvalue(),
        'a tar archive': tarred.getvalue(),
        'a tar archive inside gzip': gzip.compress(tarred.getvalue()),
        'a tar archive inside zstandard': zstandard.compress(tarred.getvalue()),
        'a NumPy array': array.getvalue(),
        'a SQLite database': (path / 'database').read_bytes(),
        'a pickle': pickle.dumps(['text'] * 9),
        'a 7z archive': b'7z\xbc\xaf\x27\x1c\0\x04' + bytes(range(200)),
        'a RAR archive': b'Rar!\x1a\x07\x01\0' + bytes(range(200)),
        'a Parquet file': b'PAR1\x15\x04\x15' + bytes(range(200)) + b'PAR1',
        'an Arrow file': b'ARROW1\0\0' + bytes(range(200)),
        'a PDF document': b'%PDF-1.7\n%\xe2\xe3',
        'an executable program': b'\x7fELF\x02\x01\x01' + bytes(200),
        'a Git LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n',
    }


def test_what_holds_no_text_is_refused_by_its_name(tmp_path):
    for name, content in archives(tmp_path).items():
        with pytest.raises(ConfigError, match=rf'a.txt is not a text file: it is {re.escape(name)}.*[.] [A-Z]'):
            read(tmp_path / 'a.txt', content)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (gzip.compress(gzip.compress(TEXT)), 'compressed twice, gzip inside gzip: decompress it once'),
        (TEXT.decode().encode('utf-16-le'), 'looks like UTF-16LE without a byte order mark. Convert it: iconv -f'),
        (TEXT.decode().encode('utf-16-be'), 'looks like UTF-16BE'),
        (TEXT.decode().encode('utf-32-le'), 'looks like UTF-32LE'),
        (bytes(4096), 'begins with 4,096 zero bytes: it was not copied completely'),
        (np.random.default_rng(0).bytes(5000), 'of its first 5,000 bytes are control characters, and it is not UTF-8'),
    ],
    ids=['gzip in gzip', 'UTF-16LE', 'UTF-16BE', 'UTF-32LE', 'zeros', 'random'],
)
def test_bytes_that_are_no_utf_8_are_refused_with_the_cure(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / 'a.txt', content)


SENTENCES = {
    'English': 'All human beings are born free and equal in dignity and rights.',
    'Russian': 'Все люди рождаются свободными и равными в своем достоинстве и правах.',
    'Greek': 'Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.',
    'Hebrew': 'כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.',
    'Arabic': 'يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.',
    'Hindi': 'सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।',
    'Tamil': 'மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும், உரிமைகளிலும் சமமானவர்கள்.',
    'Thai': 'มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม',
    'Georgian': 'ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.',
    'Amharic': 'የሰው ልጅ ሁሉ ሲወለድ ነፃና በክብርና በመብትም እኩልነት ያለው ነው።',
}


@pytest.mark.parametrize('language', SENTENCES)
@pytest.mark.parametrize('encoding', ['UTF-16LE', 'UTF-16BE'])
def test_utf_16_without_a_byte_order_mark_is_refused_in_every_script(tmp_path, language, encoding):
    path = tmp_path / 'a.txt'
    for text in (SENTENCES[language], f'{SENTENCES[language]}\n\n' * 500):
        path.write_bytes(text.encode(encoding))
        for kind in ('text', 'files', 'lines'):
            with pytest.raises(ConfigError, match=f'a.txt looks like {encoding} without a byte order mark. Convert it'):
                list(text_files.read(path, kind, 'text'))
        assert read(path, text.encode()) == text.encode()


def test_control_characters_make_no_text_even_if_they_are_utf_8(tmp_path):
    content = b''.join(bytes([i % 32, 65 + i % 26, 66]) for i in range(999))
    with pytest.raises(ConfigError, match='a.txt is not a text file: 26% of its first 2,997 bytes are control char'):
        read(tmp_path / 'a.txt', content)


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'1\t2\t3\t4\n' * 50,
        b'\x1b[1mbold\x1b[0m and a bell \x07 \x07' * 9,
        b'\0',
        b'(parenthesis)',
        b'PK is a name',
        b'BZh9 too',
        b'PAR1 is a gene',
        b']\0',
        'caf\xe9'.encode('latin-1'),
    ],
)
def test_text_that_looks_a_little_like_something_else_is_text(tmp_path, content):
    assert read(tmp_path / 'a.txt', content) == content
