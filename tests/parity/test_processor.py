"""The processor against transformers: token ids and pixel values, equal to the last bit."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import ByteLevelBPE
from qvlkit.models.builder import build_model
from qvlkit.structures import Media, Sample, Turn, VisionGeometry

transformers = pytest.importorskip('transformers')
SHARED = Path(__file__).parents[2] / '..' / 'shared' / 'data'
GEOMETRY = VisionGeometry(14, 2, 2)
MODEL = build_model(dict(  # for its normalise() alone, which needs no weights
    vision_encoder=dict(type='Qwen2ViT', width=8, depth=1, num_heads=1), merger=dict(type='PatchMerger'),
    position_encoding=dict(type='RoPE1D'), language_model=dict(
        type='Qwen2Decoder', width=8, depth=1, num_heads=1, num_kv_heads=1, feed_forward_width=8, vocab_size=8)),
    device='meta')
TEXTS = ['Who are they? What are they doing in 2015?', 'They are celebrating on the field.\n\n- one\n- two',
         '你好，世界！'] * 4

# The released template's rules (reference: chat_template.json of the checkpoints), written out once more.
RELEASED = '''{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}\
{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}\
<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}\
<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}'''


@pytest.fixture(scope='module')
def processor():
    return Processor(ByteLevelBPE(420, texts=TEXTS), GEOMETRY, num_tokens=lambda grid: grid[0] * grid[1] * grid[2] // 4,
                     position_ids=lambda layout: torch.arange(sum(span.length for span in layout)).expand(3, -1))


@pytest.fixture(scope='module')
def folder(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    processor.save(folder)
    return folder


def image_processor(folder):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    return Qwen2VLImageProcessorPil.from_pretrained(folder)


def normalised(encoded):
    """uint8 patches -> what the model computes with: float32, with an image's frame repeated. (N, C*F*P*P)

    x / 255 in float32 equals transformers' x * (1 / 255) in float64, rounded; x * (1 / 255) in float32 does not.
    """
    return torch.cat([MODEL.normalise(torch.from_numpy(patches), GEOMETRY.temporal_patch_size if kind == 'video' else 1)
                      for patches, kind in zip(encoded.patches, encoded.kinds, strict=True)]).numpy()


def expand(ids, tokenizer, counts):
    """Each placeholder as often as its picture has tokens, as transformers' processor does it."""
    pads = {tokenizer.convert_tokens_to_ids(name) for name in ('<|image_pad|>', '<|video_pad|>')}
    counts = iter(counts)
    return [token for token in ids for _ in range(next(counts) if token in pads else 1)]


def photo(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (max(height // 9, 1), max(width // 9, 1), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


CHATS = [
    [{'role': 'user', 'content': 'Who are they?'}],
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '  What?\n'},
     {'role': 'assistant', 'content': 'They are 2 <tool_call>s.\n\n- one'}, {'role': 'user', 'content': '你好 2015'}],
    [{'role': 'user', 'content': [{'type': 'image', 'image': photo(100, 60)}, {'type': 'text', 'text': 'Who?'},
                                  {'type': 'image', 'image': photo(30, 300)}, {'type': 'text', 'text': '\nand who?'}]},
     {'role': 'assistant', 'content': [{'type': 'text', 'text': 'They.'}]},
     {'role': 'user', 'content': [{'type': 'text', 'text': 'It '}, {'type': 'text', 'text': 'is '},
                                  {'type': 'video', 'video': [photo(64, 64)] * 3}]}]]


@pytest.mark.parametrize('chat', CHATS)
@pytest.mark.parametrize('prompt', [False, True])
@pytest.mark.parametrize('template', ['released', 'exported'])
def test_token_ids(processor, folder, chat, prompt, template):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = processor.encode(processor.from_messages(chat), generation_prompt=prompt)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt,
                                         chat_template=RELEASED if template == 'released' else None)
    assert encoded.token_ids.tolist() == expand(tokenizer(text).input_ids, tokenizer, encoded.token_counts)


@pytest.mark.parametrize('vision_id', [False, True])
def test_exported_template_renders_as_the_released_one(folder, vision_id):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for chat in CHATS:
        ours, released = (tokenizer.apply_chat_template(chat, tokenize=False, chat_template=template,
                                                        add_generation_prompt=True, add_vision_id=vision_id)
                          for template in (None, RELEASED))
        assert ours == released
        assert 'chat_template' in json.loads((folder / 'chat_template.json').read_text())


def test_tool_turns_render_as_in_the_exported_template(processor, folder):
    chat = [{'role': 'user', 'content': 'Q'}, {'role': 'tool', 'content': '1'}, {'role': 'tool', 'content': '2'},
            {'role': 'assistant', 'content': 'A'}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert processor.encode(processor.from_messages(chat)).token_ids.tolist() == tokenizer(text).input_ids


@pytest.mark.parametrize('sizes', [[(56, 84)], [(1, 1)], [(640, 428)], [(17, 900)], [(333, 250), (28, 28), (901, 77)]])
def test_pixel_values_are_bit_exact(processor, folder, sizes):
    photos = [photo(*size, seed) for seed, size in enumerate(sizes)]
    encoded = processor.encode(Sample('s', [Turn('user', [Media('image', image) for image in photos])]))
    theirs = image_processor(folder)(images=photos, return_tensors='np')
    assert [list(grid) for grid in encoded.grids] == theirs['image_grid_thw'].tolist()
    np.testing.assert_array_equal(normalised(encoded), theirs['pixel_values'])


def test_pixel_limits_travel_with_the_folder(processor, tmp_path):
    small = Processor(processor.tokenizer, GEOMETRY, num_tokens=processor.num_tokens,
                      position_ids=processor.position_ids, min_pixels=28 * 28 * 16, max_pixels=28 * 28 * 64)
    small.save(tmp_path)
    photos = [photo(800, 600), photo(20, 20)]
    encoded = small.encode(Sample('s', [Turn('user', [Media('image', image) for image in photos])]))
    theirs = image_processor(tmp_path)(images=photos, return_tensors='np')
    assert [list(grid) for grid in encoded.grids] == theirs['image_grid_thw'].tolist()
    np.testing.assert_array_equal(normalised(encoded), theirs['pixel_values'])


@pytest.mark.skipif(not SHARED.is_dir(), reason='shared real data is absent')
@pytest.mark.parametrize('path', ['chat/image_chat.json', 'grounding/single_images.json'])
def test_real_conversations(processor, folder, path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    data = ConversationDataset(str(SHARED / path))
    for index in range(len(data)):
        sample = data[index]
        chat = [{'role': turn.role, 'content': [
            {'type': 'image'} if isinstance(item, Media) else {'type': 'text', 'text': item} for item in turn.content]}
            for turn in sample.turns]
        encoded = processor.encode(sample)
        text = tokenizer.apply_chat_template(chat, tokenize=False, chat_template=RELEASED)
        assert encoded.token_ids.tolist() == expand(tokenizer(text).input_ids, tokenizer, encoded.token_counts)
        photos = [Image.open(item.source) for turn in sample.turns for item in turn.content if isinstance(item, Media)]
        theirs = image_processor(folder)(images=photos, return_tensors='np')
        np.testing.assert_array_equal(normalised(encoded), theirs['pixel_values'])


@pytest.mark.skipif(not SHARED.is_dir(), reason='shared real data is absent')
@pytest.mark.parametrize('path', ['grounding/COCO_train2014_000000580957.jpg', 'documents/docparsing_example5.png'])
def test_real_pictures_are_bit_exact(processor, folder, path):
    encoded = processor.encode(Sample('s', [Turn('user', [Media('image', SHARED / path)])]))
    theirs = image_processor(folder)(images=[Image.open(SHARED / path)], return_tensors='np')
    np.testing.assert_array_equal(normalised(encoded), theirs['pixel_values'])
