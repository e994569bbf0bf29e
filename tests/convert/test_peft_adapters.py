"""Adapters alone: peft puts them onto the base model in transformers, which then answers as the trained one."""
import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qvlkit.cli import convert
from qvlkit.convert.huggingface import to_hf
from qvlkit.convert.peft_adapters import export_adapters
from qvlkit.train.recipe import build_stage

_spec = importlib.util.spec_from_file_location('small_config', Path(__file__).parents[1] / 'train' / 'conftest.py')
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
small_file, small = _module.small_file, _module.small

LORA = 'stages.sft.lora={parts: [vision_encoder, merger, language_model], rank: 4, alpha: 12}'


@pytest.fixture
def stage(small, tmp_path):
    """name, overrides -> folder of a checkpoint, trained from the one called 'base'; and the trainer."""
    def make(name, *overrides, steps=3):
        config = small(f'stages.sft.max_steps={steps}', 'stages.sft.optimizer.lr=0.02', *overrides)
        config['stages']['sft']['hooks'] = {}
        base = str(tmp_path / 'base') if name != 'base' else None
        trainer = build_stage(config, 'sft', tmp_path / name, load_from=base)
        if base:
            trainer.fit()
        return trainer.save(), trainer
    return make


def released(folder, target):
    pytest.importorskip('transformers')
    from transformers import Qwen2_5_VLForConditionalGeneration
    to_hf(folder, target)
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(target, attn_implementation='eager').eval()


def answers(trainer):
    """Of one sample with a picture: ours, and what transformers gets of it."""
    loader = trainer.loader
    sample = loader.processor.encode(loader.dataset[1])
    batch = loader.rows.collate([sample])
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model.logits(batch)
    pixels = trainer.model.normalise(torch.from_numpy(sample.patches[0]), 1)
    is_image = sample.token_ids == trainer.processor.tokenizer.special_id('<|image_pad|>')
    return logits, dict(input_ids=sample.token_ids[None], pixel_values=pixels, mm_token_type_ids=is_image.int()[None],
                        image_grid_thw=torch.tensor(sample.grids))


@pytest.mark.slow
def test_peft_on_the_base_answers_as_the_model_that_was_trained(stage, tmp_path):
    peft = pytest.importorskip('peft')
    base, _ = stage('base')
    folder, trainer = stage('adapted', LORA)
    logits, inputs = answers(trainer)
    model = released(base, tmp_path / 'hf')
    with torch.no_grad():
        before = model(**inputs).logits[0]
    assert convert.main(['adapters', str(folder), str(tmp_path / 'adapters')]) == 0
    stored = {name for name in load_file(folder / 'model.safetensors') if 'lora_' in name}
    assert {path.name for path in (tmp_path / 'adapters').iterdir()} == {'adapter_model.safetensors',
                                                                         'adapter_config.json'}
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / 'adapters').eval()
    assert sum('lora_' in name for name, _ in adapted.named_parameters()) == len(stored)
    with torch.no_grad():
        after = adapted(**inputs).logits[0]
    torch.testing.assert_close(after, logits, rtol=1e-5, atol=1e-5 * logits.abs().max().item())
    assert (before - logits).abs().max() > 0.05 * logits.abs().max()  # the control: they do something


def test_what_cannot_be_exported_is_refused(stage, tmp_path):
    base, _ = stage('base')
    with pytest.raises(ValueError, match='holds no adapters; expected a checkpoint of a stage with the key lora'):
        export_adapters(base, tmp_path / 'out')
    folder, _ = stage('adapted', 'stages.sft.lora={parts: [language_model]}',
                      'stages.sft.parts.vision_encoder.trainable=false', steps=1)
    with pytest.raises(ValueError, match=r"'sft' trained merger as well.*stages.sft.parts.merger.trainable=false"):
        export_adapters(folder, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
