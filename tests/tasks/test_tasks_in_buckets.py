"""The files of downstream tasks are read from a bucket as from a disk."""

from mlm_jax.tasks import blimp, custom, suites


def test_tasks_are_the_same(bucket, minimal_pairs, tmp_path):
    root = bucket[0]
    for directory in (root, tmp_path):
        for name, content in {
            'SST-2/train.tsv': 'sentence\tlabel\n' + 'a good film\t1\na bad film\t0\n' * 20,
            'SST-2/dev.tsv': 'sentence\tlabel\na film\t1\n',
            'mine.csv': 'text,label\n' + 'one,yes\ntwo,no\n' * 20,
        }.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(content)
    for path in minimal_pairs.iterdir():
        (root / 'blimp' / path.name).write_bytes(path.read_bytes())
    assert blimp.read(f'{root}/blimp') == blimp.read(minimal_pairs)

    def digests(directory):
        mine = custom.Files('mine', 'classification', f'{directory}/mine.csv', '', '', ('text',), ('label',))
        where = suites.directories([f'glue={directory}'])
        return [suites.read('glue/sst2', where).digest(), custom.read(mine).digest()]

    assert digests(root) == digests(tmp_path)
