"""Tables of reports."""

from mlm_jax.files import markdown


def test_columns_are_aligned_and_cells_cannot_break_the_table():
    table = markdown.table(['', 'loss'], [['mlm', '2.25 ± 0.10'], ['a|b', '3']])
    assert table == (
        '|      | loss        |\n'
        '| ---  | ---:        |\n'
        '| mlm  | 2.25 ± 0.10 |\n'
        '| a\\|b | 3           |\n'
    )  # fmt: skip


def test_several_columns_may_hold_text():
    assert markdown.table(['a', 'b', 'c'], [], num_text_columns=2).splitlines()[1] == '| --- | --- | ---: |'
