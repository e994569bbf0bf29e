"""A small model and one packed row with every kind of sample in it."""
from types import SimpleNamespace

import pytest

from qvlkit.data.collate import collate
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.models.builder import build_model
from qvlkit.planning.synthetic import SyntheticSamples

MODEL = dict(
    vision_encoder=dict(type='Qwen25ViT', width=128, depth=2, num_heads=4, feed_forward_width=344, patch_size=14,
                        temporal_patch_size=2, window_size=56, full_attention_blocks=[1]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[4, 6, 6], tokens_per_second=2, theta=10000.0),
    language_model=dict(type='Qwen2Decoder', width=192, depth=2, num_heads=6, num_kv_heads=2, feed_forward_width=512,
                        tie_embeddings=True),
    attention='sdpa')


@pytest.fixture(scope='session')
def small():
    """config, build() and row: small pictures, so that real passes take no time."""
    tokenizer = StandInTokenizer(vocab_size=512)

    def build(**arguments):
        return build_model(MODEL, vocab_size=512, **arguments)

    rules = build(device='meta')
    processor = Processor(tokenizer, rules.geometry, num_tokens=rules.merger.num_tokens,
                          position_ids=rules.position_encoding.ids, plan=rules.plan,
                          max_pixels=56 * 112, video_min_pixels=56 * 56, video_max_pixels=56 * 84)
    samples = SyntheticSamples()
    row = collate([processor.encode(samples[index]) for index in range(4)], plan=rules.plan,
                  geometry=rules.geometry)
    return SimpleNamespace(config=MODEL, build=build, row=row)
