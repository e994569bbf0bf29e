"""Pairs: what is a caption, what a pair costs a row, refusals, and every index of a batch by hand."""
import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from qvlkit.data.collate import collate
from qvlkit.data.datasets.picture_tasks import PictureTasks
from qvlkit.data.image_text import ImageTextProcessor, collate_image_text
from qvlkit.data.loader import PackedLoader
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.models.vision_encoders.qwen25_vit import Qwen25ViT
from qvlkit.structures import Box, Media, Sample, SampleError, Turn, VisionGeometry

GEOMETRY = VisionGeometry(14, 2, 2)
TOKENIZER = StandInTokenizer(400)
END = TOKENIZER.special_id('<|endoftext|>')
with torch.device('meta'):
    ENCODER = Qwen25ViT(32, 1, num_heads=2, feed_forward_width=8, window_size=56, full_attention_blocks=[])


def processor(max_text_tokens=20, **limits):
    return ImageTextProcessor(Processor(
        TOKENIZER, GEOMETRY, min_pixels=784, num_tokens=lambda grid: np.prod(grid).item() // 4, plan=ENCODER.plan,
        position_ids=lambda layout: torch.arange(sum(span.length for span in layout))[None], **limits),
        max_text_tokens=max_text_tokens)


def picture(width=56, height=84, seed=0):
    return Media('image', Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)))


def document(*content, name='d'):
    return Sample(name, [Turn('document', list(content))], 'src', {'class': 'c'})


def chat(*answers):
    turns = [turn for answer in answers for turn in (Turn('user', ['Q']), Turn('assistant', answer))]
    turns[0].content.insert(0, picture())
    return Sample('chat', turns)


def text_of(pair):
    assert pair.token_ids[-1] == END and pair.token_ids.dtype == torch.int64
    return TOKENIZER.decode(pair.token_ids[:-1].tolist(), skip_special=False)


@pytest.mark.parametrize('sample, caption', [
    (document(picture(), 'a cat'), 'a cat'), (document('a ', picture(), 'cat'), 'a cat'),
    (chat(['a cat']), 'a cat'), (chat(['a cat'], ['two']), 'a cat two'),
    (document(picture(), '<|endoftext|>'), '<|endoftext|>'),
    (chat(['at ', Box((0, 0, 28, 28))]), 'at [0, 0, 28, 28]')], ids=range(6))
def test_the_caption(sample, caption):
    pair = processor(40).encode(sample)
    assert text_of(pair) == caption == processor(40).caption_text(sample)
    assert pair.token_ids.tolist() == processor(40).caption(caption).token_ids.tolist()
    assert (pair.token_ids == END).sum() == 1


def test_a_pair_in_full_and_its_measure():
    sample = document(picture(), 'a cat')
    pair, measure = processor().encode(sample), processor().measure(sample)
    assert (pair.grid, pair.num_cells, pair.length) == ((1, 6, 4), 6, 6 + 5 + 1)
    assert (measure.length, measure.num_targets, measure.grids) == (12, 1, ((1, 6, 4),))
    assert (pair.id, pair.source, pair.extra) == ('d', 'src', {'class': 'c'})
    assert pair.patches.shape == (24, 3 * 14 * 14) and processor().num_tokens(pair.grid) == 6
    chat_pair = processor().processor.encode(Sample('s', [Turn('user', [picture()]), Turn('assistant', ['a'])]))
    assert np.array_equal(pair.patches, chat_pair.patches[0])  # the picture is cut as for the VLM


def test_a_long_caption_is_cut_and_still_ends():
    pair = processor(4).encode(document(picture(), 'abcdef'))
    assert text_of(pair) == 'abc' and processor(4).measure(document(picture(), 'abcdef')).length == pair.length
    assert text_of(processor(4).encode(document(picture(), 'abc'))) == 'abc'


@pytest.mark.parametrize('sample, words', [
    (document('a cat'), ['d', 'exactly one image', 'no medium']),
    (document(picture(), picture(), 'cats'), ["['image', 'image']"]),
    (document(Media('video', [picture().source] * 4), 'a film'), ["['video']"]),
    (document(picture(), ' '), ['d', 'caption']), (Sample('u', [Turn('user', [picture(), 'Q'])]), ['u', 'caption'])],
    ids=range(5))
def test_what_is_no_pair_is_a_sample_error(sample, words):
    for use in (processor().measure, processor().encode):
        with pytest.raises(SampleError) as error:
            use(sample)
        assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('value', [1, 0, 2.5, True, None])
def test_max_text_tokens_is_checked(value):
    with pytest.raises(ValueError, match='trainer.max_text_tokens: .* at least 2'):
        processor(value)


def test_shrunk_limits_make_the_picture_smaller():
    sample = document(picture(280, 280), 'a')
    before = processor().measure(sample).length
    sample.limits = processor().shrunk_limits(sample, 0.5)
    assert processor().measure(sample).length < 0.6 * before
    assert processor().measure_sizes(None, 'd') is None


def join(pairs):
    return collate_image_text(pairs, plan=ENCODER.plan, geometry=GEOMETRY)


def test_every_index_of_a_batch():
    sizes = [(56, 84), (28, 28), (140, 56)]
    pairs = [processor().encode(document(picture(*size, seed=seed), 'abcd'[:seed + 1], name=str(seed)))
             for seed, size in enumerate(sizes)]
    batch = join(pairs)
    assert batch.picture_lengths.tolist() == [24, 4, 40] and batch.caption_lengths.tolist() == [2, 3, 4]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 1, 2, 3]]
    assert batch.caption_index.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert batch.last_rows.tolist() == [1, 4, 8] and (batch.token_ids[batch.last_rows] == END).all()
    assert batch.attention.causal and batch.attention.lengths_q == (2, 3, 4)
    assert (batch.num_targets, batch.num_tokens) == (3, 17 + 9)
    assert (batch.sample_ids, batch.sources) == (('0', '1', '2'), ('src',) * 3)
    assert batch.video_patches.shape == (0, 2 * 3 * 14 * 14)
    for number, pair in enumerate(pairs):  # rows that the index names hold the picture's own patches
        own = batch.image_patches[batch.picture_index == number].numpy()
        assert sorted(map(bytes, own)) == sorted(map(bytes, pair.patches))
    assert not torch.equal(batch.vision_plan.order, torch.arange(68))  # the control: windows did reorder
    vlm = collate([processor().processor.encode(Sample('s', [Turn('user', [picture(*size, seed=seed)]),
                                                             Turn('assistant', ['a'])]))
                   for seed, size in enumerate(sizes)], plan=ENCODER.plan, geometry=GEOMETRY)
    assert torch.equal(batch.image_patches, vlm.image_patches)


def test_the_index_follows_a_plan_that_mixes_pictures():
    """An encoder may order patches as it likes."""
    def backwards(grids):
        plan = ENCODER.plan(grids)
        plan.order = plan.order.flip(0)
        return plan
    pairs = [processor().encode(document(picture(*size), 'a')) for size in ((56, 84), (28, 28))]
    batch = collate_image_text(pairs, plan=backwards, geometry=GEOMETRY)
    assert batch.picture_index.tolist() == [1] * 4 + [0] * 24


def test_moving_keeps_everything():
    batch = join([processor().encode(document(picture(), 'a'))])
    moved = batch.to('meta')
    assert moved.token_ids.is_meta and moved.attention.cu_q.is_meta and moved.vision_plan.order.is_meta
    assert moved.sample_ids == batch.sample_ids and (moved.num_tokens, moved.num_targets) == (8, 1)
    assert torch.equal(pickle.loads(pickle.dumps(batch)).picture_index, batch.picture_index)


def test_a_loader_fills_rows_by_cells_and_caption_tokens():
    pairs = PictureTasks(40, tasks=('name',), picture_sizes=((84, 84), (112, 84)))
    loader = PackedLoader(pairs, processor(), join, row_length=60, window=20, accumulation=2)
    steps = list(itertools.islice(loader, 8))
    rows = [row for step in steps for row in step]
    assert all(len(step) == 2 for step in steps) and all(row.num_tokens <= 60 for row in rows)
    assert len({name for row in rows for name in row.sample_ids}) > 25
    assert max(row.num_targets for row in rows) > 1
