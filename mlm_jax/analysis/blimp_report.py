"""The accuracies of several models on BLiMP, as tables and as a picture."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from mlm_jax.files import markdown as markdown_lib
from mlm_jax.files import pictures
from mlm_jax.tasks import blimp
from mlm_jax.tasks.blimp import Pair

FIVE_GRAM_COLUMN = '5-gram'
GROUPS = {'fields': 'By field', 'terms': 'By phenomenon', 'paradigms': 'By paradigm'}

# Paradigm → how many of its 1,000 pairs the 5-gram model of Warstadt et al. (2020) judges correctly, as published in
# github.com/alexwarstadt/blimp, raw_results/summary/models_summary.jsonl. The accuracy over all pairs is 61.2 %.
FIVE_GRAM = {
    'anaphor_gender_agreement': 439, 'anaphor_number_agreement': 519, 'animate_subject_passive': 703,
    'animate_subject_trans': 907, 'causative': 535, 'drop_argument': 716, 'inchoative': 509, 'intransitive': 678,
    'passive_1': 892, 'passive_2': 822, 'transitive': 708, 'principle_A_c_command': 578, 'principle_A_case_1': 1000,
    'principle_A_case_2': 489, 'principle_A_domain_1': 952, 'principle_A_domain_2': 564, 'principle_A_domain_3': 522,
    'principle_A_reconstruction': 404, 'existential_there_object_raising': 835,
    'existential_there_subject_raising': 774, 'expletive_it_object_raising': 715, 'tough_vs_raising_1': 326,
    'tough_vs_raising_2': 774, 'determiner_noun_agreement_1': 883, 'determiner_noun_agreement_2': 863,
    'determiner_noun_agreement_irregular_1': 854, 'determiner_noun_agreement_irregular_2': 904,
    'determiner_noun_agreement_with_adj_2': 497, 'determiner_noun_agreement_with_adj_irregular_1': 530,
    'determiner_noun_agreement_with_adj_irregular_2': 554, 'determiner_noun_agreement_with_adjective_1': 519,
    'ellipsis_n_bar_1': 234, 'ellipsis_n_bar_2': 504, 'wh_questions_object_gap': 527, 'wh_questions_subject_gap': 820,
    'wh_questions_subject_gap_long_distance': 856, 'wh_vs_that_no_gap': 825, 'wh_vs_that_no_gap_long_distance': 810,
    'wh_vs_that_with_gap': 176, 'wh_vs_that_with_gap_long_distance': 200, 'irregular_past_participle_adjectives': 794,
    'irregular_past_participle_verbs': 796, 'adjunct_island': 479, 'complex_NP_island': 497,
    'coordinate_structure_constraint_complex_left_branch': 320,
    'coordinate_structure_constraint_object_extraction': 593, 'left_branch_island_echo_question': 958,
    'left_branch_island_simple_question': 565, 'sentential_subject_island': 605, 'wh_island': 562,
    'matrix_question_npi_licensor_present': 12, 'npi_present_1': 468, 'npi_present_2': 469,
    'only_npi_licensor_present': 566, 'only_npi_scope': 298, 'sentential_negation_npi_licensor_present': 927,
    'sentential_negation_npi_scope': 447, 'existential_there_quantifiers_1': 905,
    'existential_there_quantifiers_2': 623, 'superlative_quantifiers_1': 447, 'superlative_quantifiers_2': 165,
    'distractor_agreement_relational_noun': 235, 'distractor_agreement_relative_clause': 217,
    'irregular_plural_subject_verb_agreement_1': 726, 'irregular_plural_subject_verb_agreement_2': 876,
    'regular_plural_subject_verb_agreement_1': 755, 'regular_plural_subject_verb_agreement_2': 809,
}  # fmt: skip


def five_gram(pairs: Sequence[Pair]) -> dict:
    """The accuracies of the published 5-gram model on the paradigms of `pairs`, in the form of `blimp.tally`.

    Groups with a paradigm whose accuracy is not published are left out.
    """

    def by(name_of: Callable[[Pair], str]) -> dict:
        groups: dict[str, list[str]] = {}
        for pair in pairs:
            groups.setdefault(name_of(pair), []).append(pair.paradigm)
        accuracies = {}
        for name, paradigms in sorted(groups.items()):
            if FIVE_GRAM.keys() >= set(paradigms):
                correct = sum(FIVE_GRAM[paradigm] for paradigm in paradigms)
                accuracies[name] = {'accuracy': correct / (1000 * len(paradigms))}
        return accuracies

    return {
        **by(lambda pair: 'all').get('all', {}),
        'fields': by(lambda pair: pair.field),
        'terms': by(lambda pair: pair.term),
        'paradigms': by(lambda pair: pair.paradigm),
    }


def setting_text(setting: dict) -> str:
    """A description of what was measured.

    Args:
      setting: with `percent`, `pairs`, `paradigms` and `within_word`.
    """
    together = ' together with the later pieces of its word' if setting['within_word'] else ''
    return (
        f'BLiMP, {blimp.extent(setting)}. '
        f'The score of a sentence is the sum of the log-probabilities of its tokens, each masked alone{together}. '
        'A tie counts as wrong; chance is 50 %'
    )


def remarks(entry: dict) -> str:
    """The number of ties, and of sentences with unknown pieces, of one model; '' where both are 0."""
    counts = {
        'ties': entry['ties'],
        'sentences with pieces that the tokenizer does not know': entry['unknown_sentences'],
    }
    return ', '.join(f'{count:,} {name}' for name, count in counts.items() if count)


def describe(report: dict) -> str:
    """The table for the terminal: the percentage of correct pairs, overall, by field and by phenomenon."""
    columns = _columns(report)
    widths = [max(8, len(name) + 2) for name in columns]
    lines = [setting_text(report['setting']), f'{"percent correct":28}' + _cells(columns, widths)]
    lines.append(f'{"all":28}' + _cells([_percent(column) for column in columns.values()], widths))
    for kind in ('fields', 'terms'):
        for name, values in _rows(columns, kind):
            lines.append(f'{name:28}' + _cells(values, widths))
    lines += [f'{label}: {text}' for label, entry in report['models'].items() if (text := remarks(entry))]
    return '\n'.join(lines)


def markdown(report: dict) -> str:
    """The text of blimp.md: the percentage of correct pairs, overall, by field, by phenomenon and by paradigm."""
    columns = _columns(report)
    titles = ['', *columns]
    lines = ['# BLiMP', '', f'{setting_text(report["setting"])}.', '']
    for label, entry in report['models'].items():
        step = '' if entry['step'] is None else f', step {entry["step"]:,}'
        parts = [f'{entry["objective"]}{step} of {entry["model"]}', remarks(entry)]
        lines.append(f'* {label}: ' + '; '.join(filter(None, parts)))
    all_pairs = ['all', *(_percent(column) for column in columns.values())]
    lines += ['', '## Percentage of pairs that are judged correctly', '', markdown_lib.table(titles, [all_pairs])]
    for kind, title in GROUPS.items():
        rows = [[name, *values] for name, values in _rows(columns, kind)]
        lines += [f'## {title}', '', markdown_lib.table(titles, rows)]
    lines.append(
        f'{FIVE_GRAM_COLUMN}: the model of Warstadt et al. (2020, arXiv 1912.00582), which reads from left to right, '
        'on all pairs of these paradigms; for orientation. The phenomena are those that the files name; the paper '
        'counts s-selection as argument structure.'
    )
    return '\n'.join(lines) + '\n'


def draw(report: dict, path: pathlib.Path) -> None:
    """Draws the bars of all models side by side, overall and for each phenomenon, and chance as a line.

    Args:
      report: with `models` and `five_gram`.
      path: of the PNG file.
    """
    columns = _columns(report)
    names = list(next(iter(report['models'].values()))['terms'])
    figure = pictures.new_figure(max(9.0, 0.25 * len(names) * (1 + len(columns))), 4.8)
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for i, (label, column) in enumerate(columns.items()):
        found = {-1: column, **{place: column['terms'].get(name, {}) for place, name in enumerate(names)}}
        heights = {place: 100 * entry['accuracy'] for place, entry in found.items() if 'accuracy' in entry}
        at = [place + (i - (len(columns) - 1) / 2) * width for place in heights]
        color = 'lightgray' if label == FIVE_GRAM_COLUMN else f'C{i}'
        axes.bar(at, list(heights.values()), width, color=color, label=pictures.plain_text(label))
    axes.axhline(50, color='black', linewidth=0.8, linestyle='--', label='chance')
    axes.set_xticks(
        range(-1, len(names)), ['all', *(name.replace('_', ' ') for name in names)], rotation=35, ha='right'
    )
    axes.set(ylabel='% of pairs judged correctly', ylim=(0, 100))
    axes.grid(axis='y', alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc='outside upper center', ncols=4, fontsize=8)
    pictures.save(figure, path)


def _columns(report: dict) -> dict[str, dict]:
    """Title of a column → accuracies in the form of `blimp.tally`."""
    return {**report['models'], FIVE_GRAM_COLUMN: report['five_gram']}


def _rows(columns: dict[str, dict], kind: str) -> Iterator[tuple[str, list[str]]]:
    for name in next(iter(columns.values()))[kind]:
        yield name, [_percent(column[kind].get(name, {})) for column in columns.values()]


def _percent(entry: dict) -> str:
    return f'{100 * entry["accuracy"]:.1f}' if 'accuracy' in entry else '—'


def _cells(values: Iterable[str], widths: Sequence[int]) -> str:
    return ''.join(f'{value:>{width}}' for value, width in zip(values, widths, strict=True))
