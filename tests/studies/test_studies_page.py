"""What the page of reproductions says of the studies comes from the kept rows."""

import re

import pytest

from experiments.studies import page
from experiments.studies.registry import STUDIES, find_study
from experiments.studies.results import read


def test_the_page_says_what_the_kept_rows_say():
    text = page.PAGE.read_text(encoding='utf-8')
    assert page.with_studies(text) == text, 'run: python -m experiments.studies'


def test_ten_claims_and_more_stand_at_the_top_with_their_verdicts():
    text = page.PAGE.read_text(encoding='utf-8')
    top = text.partition('## Sentiment of film reviews')[0]
    verdicts = re.findall(r'\*\*(confirmed|contradicted|not decidable here)\*\*', top)
    assert len(verdicts) >= 10
    lines = [line for line in top.splitlines() if '**' in line]
    measured = [line for line in lines if 'Counted, without an interval' not in line]
    assert len(measured) >= 10 and all('; n = ' in line for line in measured)


@pytest.mark.parametrize('name', STUDIES)
def test_every_study_keeps_its_figure_rows_and_protocol(name):
    folder = page.KEPT / name
    assert (folder / 'figure.png').read_bytes().startswith(b'\x89PNG')
    assert (folder / 'protocol.json').exists()
    assert len(read(folder / 'results.jsonl')) > 20


def test_an_edited_page_is_found_and_a_page_without_marks_is_refused():
    text = page.PAGE.read_text(encoding='utf-8')
    edited = text.replace('**confirmed**', '**contradicted**', 1)
    assert page.with_studies(edited) == page.with_studies(text) != edited
    with pytest.raises(ValueError, match='the page needs exactly one line'):
        page.with_studies('# Reproductions')


def test_an_unknown_study_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no study 'x'; write one of study\.intrinsic_images"):
        find_study('x')
