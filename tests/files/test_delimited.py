"""Tables as different programs write them; a record that does not fit is named with its line, and never cut."""

import csv
import io
from collections import Counter

import pytest

from mlm_jax.config import ConfigError
from mlm_jax.files import delimited, records, text_files

FILLER = ''.join(f'{i},row {i}\n' for i in range(2, 502))


def read(tmp_path, content, name='a.csv', **options) -> list[list[str]]:
    """The records, names first."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [fields for _, fields in delimited.records(path, **options)]


@pytest.mark.parametrize(
    ('name', 'content', 'text'),
    [
        ('a.csv', 'id,text\n1,"He said ""yes"", twice"\n', 'He said "yes", twice'),
        ('a.csv', 'id,text\r\n1,"two\r\nlines"\r\n', 'two\r\nlines'),
        ('a.csv', 'id,text\r1,"two\rlines"\r', 'two\rlines'),
        ('a.csv', 'id,text\n1,a return\rin a field\n', 'a return\rin a field'),
        ('a.csv', 'id,text\n1,a 5" pipe\n', 'a 5" pipe'),
        ('a.csv', 'id,text\n1,"He said \\"yes\\", twice"\n', 'He said "yes", twice'),
        ('a.csv', 'id,text\n1,"C:\\"\n', 'C:\\'),
        ('a.csv', 'id,text\n1,"\\alpha \\"x\\" \\\\"\n', '\\alpha "x" \\'),
        ('a.csv', 'id,text\n1, "He said ""yes"", twice"\n', 'He said "yes", twice'),
        ('a.csv', 'id, text\n1,  "a, b"\n'.replace(', t', ',t'), 'a, b'),
        ('a.csv', 'id,text\n1, "a, \\"b\\""\n', 'a, "b"'),
        ('a.csv', '\ufeffid,text\n\n1,x\n   \n', 'x'),
        ('a.txt', 'id,text\n1,"a, b"\n', 'a, b'),
        ('a.txt', 'id\ttext\n1\ta, b\n', 'a, b'),
        ('a.tsv', 'id\ttext\n1\t"Open\n', '"Open'),
        ('a.tsv', 'id\ttext\n1\t"Whole sentence."\n2\tand, another\n', '"Whole sentence."'),
        ('a.tsv', 'id\ttext\n1\t"He said ""yes"""\n', 'He said "yes"'),
        ('a.tsv', 'id\ttext\n1\t"two\nlines"\n', 'two\nlines'),
        ('a.tsv', 'id\ttext\n1\t"a\ttab"\n', 'a\ttab'),
        ('a.tsv', '"id"\t"text"\n"1"\t"all quoted"\n', 'all quoted'),
        ('a.tsv', 'id\ttext\n1\t"comma, as spreadsheets do"\n2\tplain\n', 'comma, as spreadsheets do'),
        ('a.TSV', 'id\ttext\n1\tx\n', 'x'),
        ('a.tsv', 'id\ttext\r1\tx\r', 'x'),
        ('a.tsv', 'id\ttext\n1\ta return\rin a field\r\n', 'a return\rin a field'),
    ],
)
def test_a_table_is_read_as_the_program_wrote_it_and_alike_by_both_readers(tmp_path, name, content, text):
    found = read(tmp_path, content, name)
    assert found[0] == ['id', 'text'] and found[1] == ['1', text]
    assert next(text_files.read(tmp_path / name, 'csv', 'text')) == text.encode()
    assert next(records.read(tmp_path / name))[1] == {'id': '1', 'text': text}


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.csv', 'id,text\n1,one\n2,a, b, c\n', r'line 3 of .* has 4 fields instead of 2 \(id, text\)[.] Fields'),
        ('a.csv', 'id,text\n1\n', r'line 2 of .* has 1 fields instead of 2 \(id, text\)$'),
        ('a.csv', 'text,id,text\nx,1,y\n', "has 2 columns named 'text'; rename all but one"),
        ('a.csv', f'id,text\n1,"open\n{FILLER}', 'line 2 of .*a.csv opens a quotation mark that is never closed'),
        ('a.csv', f'id,text\n{FILLER}1,"open\n{FILLER}', 'line 502 of .*a.csv opens a quotation mark that is never'),
        ('a.csv', f'id,text\n0,"a\nb","open\n{FILLER}', 'line 3 of .*a.csv opens a quotation mark that is never'),
        (
            'a.csv', 'id,text\n1,"open\n2,"whole"\n',
            "line 2 of .* opens a quotation mark, and the closing quotation mark on line 3 is followed by 'whole\"'",
        ),
        ('a.csv', 'id,text\n1,"He" said\n', "line 2 of .* on line 2 is followed by ' said' instead of the end"),
        ('a.csv', 'id;text\n1;x\n', "separates its column names with ';', not with commas: 'id;text'"),
        ('a.tsv', 'id\ttext\n1\t2\t3\n', r'line 2 of .* has 3 fields instead of 2 \(id, text\)$'),
        ('a.tsv', 'id\ttext\r1\tx\r' + 300_000 * '2\ty\r' + '3\tz\n', 'a carriage return, and later ones with a line'),
        ('a.tsv', 'id\ttext\r1\tx\r2\ty\n', 'with a carriage return, and later ones with a line feed'),
        ('a.csv', b'id,text\n1,x\n2,caf\xe9\n', 'is not UTF-8: line 3: .* If it is Latin-1, run iconv'),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_an_error_with_the_line(tmp_path, name, content, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, content, name)


def test_a_field_that_grows_without_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, 'MAX_FIELD_CHARACTERS', 1000)
    with pytest.raises(ConfigError, match='line 3 of .* opens a quotation mark that is never closed'):
        read(tmp_path, 'id,text\n1,x\n2,"open\n' + FILLER)


def test_columns_without_a_name_may_be_several(tmp_path):
    assert read(tmp_path, ',text,,\n1,x,,\n')[1] == ['1', 'x', '', '']


def test_records_can_be_left_out_and_counted(tmp_path):
    notes = Counter()
    found = read(tmp_path, 'a\tb\n1\t"2\nbroken\n3\t4"\n', 'a.tsv', quoted=False, left_out=notes)
    assert found == [['a', 'b'], ['1', '"2'], ['3', '4"']]
    assert notes == {'lines of a.tsv without 2 fields, skipped': 1}


def test_how_a_tsv_file_is_read_is_said(tmp_path, capsys):
    read(tmp_path, 'id\ttext\n1\t"Open\n', 'a.tsv')
    assert 'a.tsv: fields that begin with a quotation mark are read unchanged' in capsys.readouterr().err
    read(tmp_path, 'id\ttext\n1\t"a ""b"""\n', 'a.tsv')
    assert 'a.tsv: fields that begin with a quotation mark are read as quoted fields' in capsys.readouterr().err
    read(tmp_path, 'id\ttext\n1\ta "b"\n', 'a.tsv')
    assert not capsys.readouterr().err


@pytest.mark.parametrize('sign', ['say \\"yes\\" now', 'x'])
def test_signs_are_found_wherever_they_stand(tmp_path, sign):
    """In the last of several pieces, and across the border of two."""
    for size in range(65_530 * 16, 65_530 * 16 + 90, 7):
        content = f'id,text\n1,"{"x" * size}"\n2,"{sign}"\n'
        assert read(tmp_path, content)[2] == ['2', sign.replace('\\', '')]


def test_what_pandas_and_spreadsheets_write(tmp_path):
    rows = [['id', 'text'], ['1', 'a\rb'], ['2', 'say "x"\nor\ty'], ['3', ''], ['4', '"'], ['5', 'a,b']]
    for delimiter, name in ((',', 'a.csv'), ('\t', 'a.tsv')):
        for ending in ('\n', '\r\n'):
            for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
                file = io.StringIO(newline='')
                csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=quoting).writerows(rows)
                assert read(tmp_path, file.getvalue(), name) == rows
