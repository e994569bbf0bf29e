"""The hook: what it notes before and after, and in a run that resumes; the model is left as it was."""
import contextlib
import json
import types

import pytest
import torch

from qvlkit.data.datasets.picture_tasks import PictureTasks
from qvlkit.data.image_text import ImageTextProcessor
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.models.builder import build_model, build_two_towers
from qvlkit.train.hooks.zero_shot import ZeroShotHook

MODEL = dict(vision_encoder=dict(type='Qwen25ViT', width=32, depth=1, num_heads=2, feed_forward_width=40,
                                 window_size=56, full_attention_blocks=[]),
             merger=dict(type='AveragePoolMerger'), position_encoding=dict(type='RoPE1D'),
             language_model=dict(type='Qwen2Decoder', width=32, depth=1, num_heads=2, num_kv_heads=1,
                                 feed_forward_width=32))
TOWERS = dict(text_tower=dict(type='TextTransformer', width=24, depth=1, num_heads=2), width=16)
HELD_OUT = PictureTasks(20, split='held_out', tasks=('name',))


@pytest.fixture
def trainer(tmp_path):
    rules = build_model(MODEL, vocab_size=400, device='meta')
    processor = Processor(StandInTokenizer(400), rules.geometry, num_tokens=rules.merger.num_tokens,
                          position_ids=rules.position_encoding.ids, plan=rules.vision_encoder.plan)
    strategy = types.SimpleNamespace(autocast=contextlib.nullcontext, is_main=True)
    return types.SimpleNamespace(
        model=build_two_towers(MODEL, TOWERS, vocab_size=400, seed=0), step=0, results={}, work_dir=tmp_path / 'stage',
        stage='sft', device='cpu', strategy=strategy,
        loader=types.SimpleNamespace(processor=ImageTextProcessor(processor)))


def read(trainer):
    return json.loads((trainer.work_dir / 'evaluation.json').read_text())


def test_before_and_after(trainer):
    hook = ZeroShotHook(HELD_OUT, batch_size=7)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    hook.before_train(trainer)
    assert set(trainer.results) == {'zero-shot accuracy', 'retrieval recall@1'} and set(read(trainer)) == {'untrained'}
    assert trainer.model.training and all(torch.equal(value, weights[name])
                                          for name, value in trainer.model.state_dict().items())
    before = trainer.results['zero-shot accuracy']['before']
    with torch.no_grad():
        trainer.model.pooling.proj.weight.neg_()
    trainer.step = 5
    hook.after_train(trainer)
    result, written = trainer.results['zero-shot accuracy'], read(trainer)
    assert set(result) == {'unit', 'chance', 'count', 'before', 'after'}
    assert (result['before'], result['unit'], result['count']) == (before, '%', 20) and result['after'] != before
    assert written['untrained']['zero-shot accuracy']['share'] == before
    assert written['trained']['zero-shot accuracy']['share'] == result['after']
    assert len(written['trained']) == 5


def test_batches_change_nothing(trainer):
    for batch_size in (3, 20):
        trainer.results = {}
        ZeroShotHook(HELD_OUT, batch_size=batch_size).before_train(trainer)
        if batch_size == 3:
            first = read(trainer)
    assert read(trainer) == first


def test_a_resumed_run_keeps_what_was_measured_before(trainer):
    ZeroShotHook(HELD_OUT).before_train(trainer)
    untrained = read(trainer)['untrained']
    trainer.step = 3
    resumed = ZeroShotHook(HELD_OUT)
    resumed.before_train(trainer)
    resumed.after_train(trainer)
    assert read(trainer)['untrained'] == untrained and 'trained' in read(trainer)


def test_other_ranks_leave_it_out():
    assert ZeroShotHook.main_only


def test_a_model_without_towers_is_refused(trainer):
    trainer.model = build_model(MODEL, vocab_size=400, device='meta')
    with pytest.raises(ValueError, match=r'stages.sft.hooks: ZeroShotHook needs two towers.* VLM .*stages.sft.towers'):
        ZeroShotHook(HELD_OUT).before_train(trainer)
