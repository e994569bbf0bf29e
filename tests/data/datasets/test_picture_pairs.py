from qvlkit.data.datasets.picture_pairs import PicturePairs
from qvlkit.data.datasets.picture_tasks import COLOURS, LIST_QUESTIONS, PictureTasks


def test_the_better_answer_keeps_the_order_that_is_asked_for_and_both_are_true():
    pairs, asked = PicturePairs(60), set()
    for index in range(60):
        sample = pairs[index]
        chosen, rejected = (turn.content[0].split(', ') for turn in (sample.turns[-1], sample.rejected[0]))
        assert chosen == rejected[::-1]
        question = sample.turns[0].content[-1]
        first, second = chosen if question.endswith('from a to z.') else rejected
        assert first.split()[0] < second.split()[0]
        asked.add(question)
        assert set(chosen) == {shape.name for shape in sample.media()[0].source.shapes} and len(set(chosen)) == 2
    assert asked == set(LIST_QUESTIONS)


def test_splits_share_no_scene_with_each_other_or_with_the_lists_that_are_trained_on():
    scenes = [{dataset[index].media()[0].source.shapes for index in range(200)} for dataset in (
        PicturePairs(200), PicturePairs(200, split='held_out'), PictureTasks(200, tasks=('list',)))]
    assert not scenes[0] & scenes[1] and not scenes[0] & scenes[2]


def test_lists_to_train_on_are_in_either_order():
    lists = PictureTasks(400, tasks=('list',))
    firsts = [lists[index].extra['answer'].split(', ') for index in range(400)]
    assert 0.4 < sum(first < second for first, second in firsts) / 400 < 0.6
    assert {first.split()[0] for first, _ in firsts} == set(COLOURS)
