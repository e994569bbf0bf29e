import pytest

from qvlkit.data.datasets.long_texts import FACTS, OBJECTS, SHAPE_QUESTION, SUBJECTS, VERBS, LongTexts
from qvlkit.structures import Media


def text_of(sample):
    return ' '.join(item for turn in sample.turns for item in turn.content if isinstance(item, str))


def test_every_answer_stands_in_the_facts_before_the_text_between():
    dataset = LongTexts(40, sentences=(5, 5), pictures=0.0)
    for index in range(40):
        turns = dataset[index].turns
        facts, between = turns[0].content[:2]
        assert len(turns) == 2 * len(FACTS) and between.count('.') == 5
        for question, answer in zip(turns[::2], turns[1::2]):
            key = question.content[-1].removeprefix('What is the ').rstrip('?')
            assert f'The {key} is {answer.content[0]}.' in facts and answer.content[0] not in between


def test_the_text_between_can_hold_no_value():
    between = ' '.join([*SUBJECTS, *VERBS, *OBJECTS])
    values = [value for options in FACTS.values() for value in options]
    assert len(set(values)) == len(values) and not any(value in between for value in values)


def test_without_evidence_the_same_question_has_nothing_to_go_by():
    kept, removed = (LongTexts(40, split='held_out', evidence=evidence) for evidence in (True, False))
    tasks = set()
    for index in range(40):
        with_it, without = kept[index], removed[index]
        assert with_it.turns[-1] == without.turns[-1] and with_it.turns[0].content[-1] == without.turns[0].content[-1]
        assert without.extra['answer'] not in text_of(without).removesuffix(without.extra['answer'])
        assert not without.media()
        tasks |= {with_it.extra['task'], without.extra['task']}
    assert tasks == {'recall', 'recall picture', 'recall without evidence', 'recall picture without evidence'}


def test_a_share_of_samples_has_its_evidence_in_a_picture():
    dataset = LongTexts(100, pictures=0.25)
    with_picture = [index for index in range(100) if dataset[index].media()]
    assert len(with_picture) == 25
    sample = dataset[with_picture[0]]
    assert isinstance(sample.turns[0].content[0], Media) and sample.turns[0].content[-1] == SHAPE_QUESTION


def test_splits_and_seeds_differ_and_repeat():
    assert LongTexts(3)[0].turns == LongTexts(9)[0].turns
    assert LongTexts(3)[0].turns != LongTexts(3, seed=1)[0].turns != LongTexts(3, split='held_out')[0].turns


@pytest.mark.parametrize('arguments, message', [
    (dict(split='test'), 'LongTexts.split'), (dict(sentences=(5, 2)), 'LongTexts.sentences'),
    (dict(pictures=2), 'LongTexts.pictures')], ids=str)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LongTexts(3, **arguments)
    with pytest.raises(IndexError):
        LongTexts(3)[3]
