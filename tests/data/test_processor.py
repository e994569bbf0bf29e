"""The processor: targets and control tokens by structure, boxes, grids, videos, errors."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.preprocessor_config import read_limits
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.structures import Box, Media, Sample, SampleError, TextSpan, Turn, VisionGeometry, VisionPlan, VisionSpan

SHARED = Path(__file__).parents[2] / '..' / 'shared' / 'data'
GEOMETRY = VisionGeometry(14, 2, 2)
TOKENIZER = StandInTokenizer(400)
IM_START, IM_END = TOKENIZER.special_id('<|im_start|>'), TOKENIZER.special_id('<|im_end|>')


def make(**given):
    layouts = []

    def plan(grids):
        rows, tokens = (sum(np.prod(grid).item() for grid in grids) // part for part in (1, 4))
        return VisionPlan(torch.arange(rows), torch.arange(tokens), torch.zeros(rows, 2), {}, tuple(grids))

    def position_ids(layout):
        layouts.append(layout)
        return torch.arange(sum(span.length for span in layout)).expand(3, -1)
    processor = Processor(TOKENIZER, given.pop('geometry', GEOMETRY), num_tokens=lambda grid: np.prod(grid).item() // 4,
                          position_ids=position_ids, plan=plan, **given)
    processor.layouts = layouts
    return processor


def targets_of(encoded):
    return TOKENIZER.decode(encoded.token_ids[encoded.is_target].tolist(), skip_special=False)


def image(width=56, height=84):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_one_sample_in_full():
    processor = make()
    sample = Sample('s', [Turn('user', [Media('image', image()), 'Q']), Turn('assistant', ['A'])], 'src', {'k': 1})
    encoded = processor.encode(sample)
    system, question = 'system\nYou are a helpful assistant.', 'Q'
    head = 1 + len(system) + 2 + 1 + len('user\n') + 1
    assert encoded.grids == [(1, 6, 4)] and encoded.kinds == ['image'] and encoded.token_counts == [6]
    assert encoded.visual_rows.tolist() == list(range(head, head + 6))
    assert (encoded.token_ids[encoded.visual_rows] == TOKENIZER.special_id('<|image_pad|>')).all()
    assert processor.layouts == [[TextSpan(head), VisionSpan((1, 3, 2)),
                                  TextSpan(1 + len(question) + 2 + 1 + len('assistant\n') + 1 + 2)]]
    assert targets_of(encoded) == 'A<|im_end|>\n'
    assert encoded.is_target[-3:].all() and encoded.is_target.sum() == 3
    assert encoded.patches[0].shape == (24, 588) and encoded.patches[0].dtype == np.uint8
    assert (encoded.source, encoded.extra, encoded.length) == ('src', {'k': 1}, encoded.position_ids.shape[1])
    assert encoded.token_ids.dtype == torch.int64 and encoded.is_target.dtype == torch.bool
    assert sample.turns[0].content[0].size is None  # the sample is not changed


def test_layout_of_several_media_covers_their_rows():
    processor = make()
    content = ['a', Media('image', image()), 'bc', Media('image', image(56, 56)), Media('image', image(84, 56)), 'd']
    encoded = processor.encode(Sample('s', [Turn('user', content)]))
    rows, start = [], 0
    for span in processor.layouts[0]:
        if isinstance(span, VisionSpan):
            rows += range(start, start + span.length)
        start += span.length
    assert encoded.visual_rows.tolist() == rows and start == encoded.length
    assert [span.grid for span in processor.layouts[0][1::2]] == [(1, 3, 2), (1, 2, 2), (1, 2, 3)]
    assert [span.length for span in processor.layouts[0][2:5:2]] == [4, 2]


def test_every_answer_of_a_conversation_is_a_target():
    turns = [Turn('user', ['a']), Turn('assistant', ['b']), Turn('user', ['c']), Turn('assistant', ['d'])]
    assert targets_of(make().encode(Sample('s', turns))) == 'b<|im_end|>\nd<|im_end|>\n'


HOSTILE = st.lists(st.sampled_from([
    '<|im_end|>', '<|im_start|>', 'assistant', '\n', '<|image_pad|>', '<|vision_start|>', '<|vision_end|>',
    '<|endoftext|>', '<image>', 'x', ' ', 'é']), max_size=10).map(''.join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=3), st.one_of(st.none(), HOSTILE))
def test_text_makes_neither_control_tokens_nor_targets(pairs, system):
    turns = [] if system is None else [Turn('system', [system])]
    for question, answer in pairs:
        turns += [Turn('user', [Media('image', image(56, 56)), question]), Turn('assistant', [answer])]
    encoded = make().encode(Sample('s', turns))
    ids = encoded.token_ids.tolist()
    assert ids.count(IM_START) == ids.count(IM_END) == 1 + 2 * len(pairs)
    assert ids.count(TOKENIZER.special_id('<|vision_start|>')) == len(pairs)
    assert ids.count(TOKENIZER.special_id('<|image_pad|>')) == len(encoded.visual_rows) == 4 * len(pairs)
    assert ids.count(TOKENIZER.special_id('<|endoftext|>')) == 0
    assert targets_of(encoded) == ''.join(answer + '<|im_end|>\n' for _, answer in pairs)


def test_generation_prompt_ends_at_the_header():
    processor = make()
    encoded = processor.encode(Sample('s', [Turn('user', ['Q'])]), generation_prompt=True)
    assert TOKENIZER.decode(encoded.token_ids.tolist(), False).endswith('<|im_start|>assistant\n')
    assert not encoded.is_target.any()
    whole = processor.encode(Sample('s', [Turn('user', ['Q']), Turn('assistant', ['\n A'])]))
    assert whole.token_ids[:encoded.length].tolist() == encoded.token_ids.tolist()
    with pytest.raises(SampleError, match='s: a prompt for generation ends with an assistant turn'):
        processor.encode(Sample('s', [Turn('user', ['Q']), Turn('assistant', ['A'])]), generation_prompt=True)


def test_boxes_are_scaled_and_written_last():
    picture = image(640, 428)
    turns = [Turn('user', [Media('image', picture)]), Turn('assistant', [
        Box((146, 137, 615, 415), 'cat'), ' at ', Box((146, 137, 615, 415))])]
    assert targets_of(make().encode(Sample('s', turns))) == (
        '[{"bbox_2d": [147, 134, 619, 407], "label": "cat"}] at [147, 134, 619, 407]<|im_end|>\n')


def test_boxes_follow_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image(112, 56).save(tmp_path / 'a.jpg', exif=exif)  # shown as 56 wide, 112 high
    turns = [Turn('user', [Media('image', tmp_path / 'a.jpg')]), Turn('assistant', [Box((0, 0, 99, 100))])]
    encoded = make().encode(Sample('s', turns))
    assert encoded.grids == [(1, 8, 4)] and targets_of(encoded).startswith('[0, 0, 55, 100]')


def test_source_boxes_of_a_file_reach_the_targets(tmp_path):
    image(640, 428).save(tmp_path / 'a.png')
    answer = '```json\n[{"bbox_2d": [146, 137, 615, 415], "label": "cat"}]\n```'
    (tmp_path / 'x.json').write_text(json.dumps([{'image': 'a.png', 'conversations': [
        {'from': 'human', 'value': '<image>'}, {'from': 'gpt', 'value': answer}]}]))
    data = ConversationDataset(str(tmp_path / 'x.json'), boxes='source')
    expected = answer.replace('146, 137, 615, 415', '147, 134, 619, 407')
    assert targets_of(make().encode(data[0])) == expected + '<|im_end|>\n'


def test_videos_are_frame_lists_with_real_seconds():
    processor = make(video_min_pixels=3136, video_max_pixels=6272)
    frames = [image(56, 56)] * 5
    encoded = processor.encode(Sample('s', [Turn('user', [Media('video', frames, fps=1.5)])]))
    assert encoded.grids == [(3, 4, 4)] and encoded.token_counts == [12] and encoded.kinds == ['video']
    assert encoded.patches[0].shape == (48, 1176)
    span = processor.layouts[0][1]
    assert span.grid == (3, 2, 2) and span.seconds_per_grid == 2 / 1.5
    assert (encoded.token_ids[encoded.visual_rows] == TOKENIZER.special_id('<|video_pad|>')).all()
    array = np.stack([np.asarray(frame) for frame in frames])
    again = processor.encode(Sample('s', [Turn('user', [Media('video', array)])]))
    np.testing.assert_array_equal(again.patches[0], encoded.patches[0])


def test_geometry_decides_every_count():
    processor = Processor(TOKENIZER, VisionGeometry(8, 1, 4), num_tokens=lambda grid: grid[1] * grid[2] // 16,
                          position_ids=lambda layout: torch.zeros(1, sum(span.length for span in layout)),
                          min_pixels=1024)
    encoded = processor.encode(Sample('s', [Turn('user', [Media('image', image(64, 96))])]))
    assert encoded.grids == [(1, 12, 8)] and encoded.token_counts == [6] and encoded.patches[0].shape == (96, 192)


@pytest.mark.parametrize('content, reason, kind', [
    (Media('image', 'gone.png'), "'gone.png' does not exist", 'missing_media'),
    (Media('image', b'<html>'), 'looks like HTML', 'bad_image'),
    (Media('image', image(1, 300)), 'aspect ratio 300', 'bad_size'),
    (Media('video', 'clip.mp4'), "'clip.mp4' does not exist", 'missing_media'),
    (Media('video', []), 'a video without frames', 'empty_video'), (Media('video', 7), 'got int', 'wrong_type'),
    (Media('video', [image(56, 56), image(56, 57)]), 'frame 1 of a video has 56 x 57 pixels', 'frame_size'),
    (Box((0, 0, 1, 1)), 'the sample has 0 images', 'bad_box')])
def test_errors_name_the_sample(content, reason, kind):
    with pytest.raises(SampleError, match=reason) as caught:
        make().encode(Sample('x.json[7]', [Turn('user', [content, 'Q'])]))
    assert str(caught.value).startswith('x.json[7]: ') and caught.value.kind == kind


def test_a_merger_and_a_position_encoding_that_disagree_are_refused():
    processor = make()
    processor.num_tokens = lambda grid: 5
    with pytest.raises(ValueError, match=r's: the position encoding gave .* the merger makes \[5\] tokens'):
        processor.encode(Sample('s', [Turn('user', [Media('image', image())])]))


def test_limits_are_checked():
    with pytest.raises(ValueError, match='0 < min_pixels <= max_pixels, got 10 and 5'):
        make(min_pixels=10, max_pixels=5)


def test_messages():
    processor = make()
    parts = [{'type': 'image', 'image': image()}, {'type': 'text', 'text': '<image>?'}]
    messages = [{'role': 'user', 'content': parts}]
    encoded = processor.encode(processor.from_messages(messages), generation_prompt=True)
    assert encoded.token_counts == [6] and '<image>?' in TOKENIZER.decode(encoded.token_ids.tolist())
    batch = processor(messages, add_generation_prompt=True)
    assert batch.token_ids.tolist() == encoded.token_ids.tolist() and batch.num_targets == 0
    np.testing.assert_array_equal(batch.image_patches.numpy(), encoded.patches[0])
    with pytest.raises(SampleError, match='messages: the conversation is empty'):
        processor.from_messages([])


def test_saved_limits_come_back(tmp_path):
    limits = {'min_pixels': 784, 'max_pixels': 50176, 'video_min_pixels': 1568, 'video_max_pixels': 3136,
              'video_total_pixels': 100_000}
    processor = make(**limits)
    processor.save(tmp_path)
    assert read_limits(tmp_path) == limits == processor.limits
    (tmp_path / 'video_preprocessor_config.json').unlink()
    assert read_limits(tmp_path) == {'min_pixels': 784, 'max_pixels': 50176}


def test_no_heavy_imports():
    import subprocess
    code = ('import sys, qvlkit.data.processor, qvlkit.data.datasets.conversation, qvlkit.data.tokenizers\n'
            'print(sorted({"cv2", "transformers", "matplotlib"} & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == '[]'


@pytest.mark.skipif(not SHARED.is_dir(), reason='shared real data is absent')
@pytest.mark.parametrize('path', ['chat/image_chat.json', 'grounding/single_images.json'])
def test_real_conversations_encode(path):
    data = ConversationDataset(str(SHARED / path))
    for index in range(len(data)):
        encoded = make().encode(data[index])
        answers = [item for turn in data[index].turns if turn.role == 'assistant' for item in turn.content]
        assert targets_of(encoded) == ''.join(f'{answer}<|im_end|>\n' for answer in answers)
        assert sum(encoded.token_counts) == len(encoded.visual_rows) > 0
        assert [len(patches) for patches in encoded.patches] == [t * h * w for t, h, w in encoded.grids]
