import json

import pytest
import torch

from qvlkit.data.datasets.picture_tasks import PictureTasks
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.evaluation.evaluator import Evaluator
from qvlkit.evaluation.training_report import HEADER, comparison_rows, write_training_report
from qvlkit.structures import Box, Sample, Turn, VisionGeometry


@pytest.fixture(scope='module')
def processor():
    return Processor(StandInTokenizer(), VisionGeometry(14, 2, 2),
                     num_tokens=lambda grid: grid[0] * grid[1] * grid[2] // 4,
                     position_ids=lambda layout: torch.zeros(3, sum(span.length for span in layout), dtype=torch.int64))


@pytest.fixture(scope='module')
def evaluator(processor):
    # 100 x 90 pixels are seen as 112 x 84: boxes have to be scaled
    held_out = PictureTasks(48, split='held_out', picture_sizes=((100, 90),))
    return Evaluator(held_out, processor, reference=PictureTasks(60), batch_size=10, keep=3)


def oracle(prompts):
    """The expected answers, boxes at the size that the model sees."""
    texts = []
    for prompt in prompts:
        answer = prompt.extra['answer']
        if isinstance(answer, Box):
            x1, y1, x2, y2 = answer.coordinates
            answer = f'[{{"bbox_2d": [{x1 * 1.12:.0f}, {y1 * 84 / 90:.0f}, {x2 * 1.12:.0f}, {y2 * 84 / 90:.0f}]}}]'
        texts.append(answer)
    return texts


def test_right_answers_score_one_and_silence_scores_zero(evaluator):
    right, silent = evaluator(oracle), evaluator(lambda prompts: [''] * len(prompts))
    assert list(right.tasks) == ['name', 'count', 'locate', 'read']
    for task, result in right.tasks.items():
        assert (result.accuracy, result.count, silent.tasks[task].accuracy) == (1.0, 12, 0.0)
        assert result.low < 1.0 <= result.high + 1e-9 and 0 < result.chance < 1 or task == 'locate'


def test_prompts_come_in_batches_and_hold_no_answer(evaluator, processor):
    sizes = []

    def answer(prompts):
        sizes.append(len(prompts))
        for prompt in prompts[:2]:
            text = processor.tokenizer.decode(prompt.token_ids.tolist(), skip_special=False)
            assert text.endswith('<|im_start|>assistant\n') and not prompt.is_target.any()
            assert text.count('assistant\n') == 1
        return oracle(prompts)

    evaluator(answer)
    assert sizes == [10, 10, 10, 10, 8]


def test_a_constant_box_scores_the_stated_chance(evaluator):
    chance, how = evaluator.chances['locate']
    fractions = [float(value) for value in how.removeprefix('always the box ').split(',')[0].split()]
    box = [round(value * side) for value, side in zip(fractions, (112, 84, 112, 84))]
    result = evaluator(lambda prompts: [f'[{{"bbox_2d": {box}}}]'] * len(prompts)).tasks['locate']
    assert abs(result.accuracy - chance) <= 1.01 / 12  # rounding may tip one of the twelve questions


def test_examples_are_the_first_of_each_task_with_scaled_boxes(evaluator):
    examples = evaluator(oracle).examples
    assert [example.task for example in examples] == ['name'] * 3 + ['count'] * 3 + ['locate'] * 3 + ['read'] * 3
    example = examples[6]
    assert example.sample_id == 'picture_tasks/held_out[2]' and example.picture.size == (112, 84)
    assert example.question.startswith('Locate the ') and example.score == 1.0
    for ours, theirs in zip(example.expected_boxes[0], example.answer_boxes[0]):
        assert abs(ours - theirs) <= 1


def test_results_are_plain_json(evaluator):
    result = json.loads(json.dumps(evaluator(oracle).to_dict()))
    assert result['tasks']['name']['accuracy'] == 1.0 and result['examples'][0]['task'] == 'name'


def test_wrong_input_is_named(processor, evaluator):
    class Few(list):
        name = 'few'

    with pytest.raises(ValueError, match='no held-out'):
        Evaluator(PictureTasks(4, split='held_out'), processor, metrics={'nam': {'type': 'ExactMatch'}})
    with pytest.raises(ValueError, match='none'):
        Evaluator(Few(), processor)
    with pytest.raises(ValueError, match="a.json.3.: a held-out sample needs extra.'task'"):
        Evaluator(Few([Sample('a.json[3]', [Turn('user', ['hi'])])]), processor)
    with pytest.raises(ValueError, match='to end with the assistant'):
        Evaluator(Few([Sample('a', [Turn('user', ['hi'])], extra={'task': 't', 'answer': 'x'})]), processor)
    with pytest.raises(ValueError, match='10 prompts were asked and 1 answers'):
        evaluator(lambda prompts: ['x'])


def test_a_metric_can_be_named(processor):
    held_out = PictureTasks(4, split='held_out', tasks=('locate',))
    strict = Evaluator(held_out, processor, metrics={'locate': {'type': 'BoxIoU', 'threshold': 1.0}})

    def nearly(prompts):
        boxes = [[int(value) + 2 for value in prompt.extra['answer'].coordinates] for prompt in prompts]
        return [f'[{{"bbox_2d": {box}}}]' for box in boxes]

    assert strict(nearly).tasks['locate'].accuracy == 0.0
    assert Evaluator(held_out, processor)(nearly).tasks['locate'].accuracy == 1.0


def test_the_training_report_shows_chance_untrained_and_trained(evaluator, tmp_path):
    before = evaluator(lambda prompts: ['<script>alert(1)</script>'] * len(prompts))
    after = evaluator(oracle)
    path = write_training_report(tmp_path / 'report' / 'index.html', title='tiny', before=before, after=after,
                                 history=[{'step': i, 'loss': 5.0 / (i + 1), 'lr': 1e-3} for i in range(50)],
                                 summary={'parameters': '3.1 M'})
    text = path.read_text()
    rows = comparison_rows(before, after)
    assert len(rows[0]) == len(HEADER) and rows[0][2:4] == ('0.0 %', '100.0 %')
    assert '<script>' not in text and '&lt;script&gt;' in text
    assert text.count('data:image/png') == 12 and text.count('data:image/svg+xml') == 3
    assert text.count('#22a35a') == 3 and text.count('#e5484d') == 3  # a box expected and a box answered, three times
    assert '3.1 M' in text and 'http' not in text.split('</style>')[1].replace('http://www.w3.org', '')
    assert write_training_report(tmp_path / 'bare.html', title='t', history=[], before=None, after=after).stat().st_size
