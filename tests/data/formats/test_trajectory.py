"""Trajectories of screen agents."""
import json

import pytest

from qvlkit.data.formats.grounding import regions_to_text
from qvlkit.data.formats.trajectory import announce, read
from qvlkit.data.transforms.regions import to_resized
from qvlkit.structures import Media, Point, Region, SampleError

END = {'screenshot': '2.png', 'action': {'action': 'terminate', 'status': 'success'}}
CLICK = {'screenshot': '0.png', 'thought': 'Open the menu.', 'action': {'action': 'click', 'coordinate': [540, 1200]}}
SWIPE = {'screenshot': '1.png', 'action': {
    'name': 'mobile_use', 'arguments': {'action': 'swipe', 'coordinate': [0, 1200], 'coordinate2': [540, 0]}}}


def load(steps, **given):
    record = {'task': 'Turn it off.', 'platform': 'mobile', 'steps': steps, **given}
    return read(record, sample_id='t.jsonl[0]', source='t', resolve=lambda path: path)


def text(turn, sizes):
    moved = [to_resized(item, sizes) if isinstance(item, Region) else item for item in turn.content]
    return ''.join(item for item in regions_to_text(moved) if isinstance(item, str))


def test_turns_history_and_points_that_move_with_their_screenshots():
    sample = load([CLICK, SWIPE, END])
    assert [turn.role for turn in sample.turns] == ['user', 'assistant'] * 3 and sample.extra == {'platform': 'mobile'}
    assert [medium.source for medium in sample.media()] == ['0.png', '1.png', '2.png']
    assert isinstance(sample.turns[0].content[-1], Media)
    sizes = [((1080, 2400), (540, 1200)), ((1080, 2400), (1080, 2400)), ((1080, 2400), (540, 1200))]
    assert text(sample.turns[1], sizes) == (
        'Open the menu.\n<tool_call>\n{"name": "mobile_use", "arguments": {"action": "click", "coordinate": [270, '
        '600]}}\n</tool_call>')
    assert text(sample.turns[0], sizes).endswith('(what you have done so far): nothing\n')
    assert text(sample.turns[4], sizes) == (
        'The user query: Turn it off.\nTask progress (what you have done so far): '
        'Step 1: {"action": "click", "coordinate": [270, 600]}; '
        'Step 2: {"action": "swipe", "coordinate": [0, 1200], "coordinate2": [540, 0]}\n')
    call = text(sample.turns[5], sizes).removeprefix('<tool_call>\n').removesuffix('\n</tool_call>')
    assert json.loads(call) == {'name': 'mobile_use', 'arguments': END['action']}
    points = [item for turn in sample.turns for item in turn.content if isinstance(item, Point)]
    assert len({id(point) for point in points}) == len(points)


def test_spaces_and_the_system_turn():
    sample = load([{**CLICK, 'action': {'action': 'click', 'coordinate': [0.5, 0.5]}}, END], space='unit')
    assert sample.turns[1].content[1] == Point((0.5, 0.5), '', 0, 'unit')
    system = announce(sample, (540, 1204)).turns[0]
    assert system.role == 'system' and '540x1204' in system.content[0] and '"name": "mobile_use"' in system.content[0]
    assert sample.turns[0].role == 'user'


@pytest.mark.parametrize('steps, given, reason, kind', [
    ([CLICK], {}, r"steps\[0\].action: expected 'terminate' at the end", 'bad_action'),
    ([END, CLICK, END], {}, r"steps\[0\].action: expected 'terminate' at the end and there only", 'bad_action'),
    ([], {}, 'steps: expected a list', 'wrong_type'), (['x'], {}, r'steps\[0\]: expected a dict', 'wrong_type'),
    ([END], {'platform': 'phone'}, "platform: 'phone' is unknown", 'bad_action'),
    ([END], {'platform': None}, 'platform: None is unknown', 'bad_action'),
    ([END], {'task': ''}, 'task: expected text', 'wrong_type'), ([END], {'space': 'x'}, 'space', 'bad_box'),
    ([{**END, 'screenshot': None}], {}, 'screenshot: expected a path', 'wrong_type'),
    ([{**END, 'thought': 3}], {}, 'thought: expected text', 'wrong_type'),
    ([{**CLICK, 'action': {'action': 'clik', 'coordinate': [1, 2]}}, END], {}, "did you mean 'click'", 'bad_action'),
    ([{**CLICK, 'action': 'pyautogui.click(1, 2)'}, END], {}, "expected a call with 'name'", 'bad_action'),
    ([{**CLICK, 'action': {'action': 'click', 'coordinate': [-1, 2]}}, END], {}, 'outside the screen', 'bad_action')])
def test_errors(steps, given, reason, kind):
    with pytest.raises(SampleError, match=reason) as caught:
        load(steps, **given)
    assert caught.value.kind == kind and str(caught.value).startswith('t.jsonl[0]: ')


def test_the_pipeline_announces_the_screen_as_the_model_sees_it(tmp_path):
    import torch
    from PIL import Image

    from qvlkit.data.processor import Processor
    from qvlkit.data.tokenizers import StandInTokenizer
    from qvlkit.structures import VisionGeometry
    for name in ('0.png', '1.png', '2.png'):
        Image.new('RGB', (1080, 2400), 'white').save(tmp_path / name)
    sample = read({'task': 'Turn it off.', 'platform': 'mobile', 'steps': [CLICK, SWIPE, END]}, sample_id='t',
    source='t',
                  resolve=lambda path: tmp_path / path)
    processor = Processor(StandInTokenizer(400), VisionGeometry(14, 2, 2), max_pixels=540 * 1200,
                          num_tokens=lambda grid: grid[1] * grid[2] // 4,
                          position_ids=lambda layout: torch.zeros(3, sum(span.length for span in layout)))
    encoded = processor.encode(sample)
    rows, columns = (side * 14 for side in encoded.grids[0][1:])
    said = processor.tokenizer.decode(encoded.token_ids.tolist())
    assert f'{columns}x{rows}' in said and '"name": "mobile_use"' in said.partition('user\n')[0]
    assert f'"coordinate": [{round(540 * columns / 1080)}, {round(1200 * rows / 2400)}]' in said
