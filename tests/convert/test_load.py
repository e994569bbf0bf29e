import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import qvlkit
from qvlkit.convert.huggingface import from_hf, save_pretrained
from qvlkit.convert.load import load, load_model

PIXELS = np.random.default_rng(0).integers(0, 256, (110, 170, 3), dtype=np.uint8)
MESSAGES = [{'role': 'user', 'content': [
    {'type': 'image', 'image': Image.fromarray(PIXELS)},
    {'type': 'text', 'text': 'What colour is the square?'}]}]


def reference_logits(folder, batch, model):
    """Logits of transformers for the same tokens, pixels and position ids."""
    from transformers import Qwen2_5_VLForConditionalGeneration
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation='eager').eval()
    order = batch.vision_plan.order.argsort()
    with torch.no_grad():
        return reference(
            input_ids=batch.token_ids[None], position_ids=batch.position_ids[:, None],
            pixel_values=model.normalise(batch.image_patches, 1)[order],
            image_grid_thw=torch.tensor(batch.vision_plan.grids)).logits[0]


@pytest.mark.parametrize('name', ['untied', 'tied'])
def test_logits_survive_import_and_export(folders, tmp_path, name):
    from_hf(folders[name], tmp_path / 'ours')
    model, processor = qvlkit.load(tmp_path / 'ours')
    batch = processor(MESSAGES, add_generation_prompt=True)
    with torch.no_grad():
        logits = model.logits(batch)
    assert len(batch.vision_plan.order) > 64  # more than one window
    expected = reference_logits(folders[name], batch, model)
    assert (logits - expected).norm() / expected.norm() < 1e-5
    save_pretrained(model, tmp_path / 'back', source=tmp_path / 'ours')
    assert torch.equal(reference_logits(tmp_path / 'back', batch, model), expected)


def test_the_processor_has_the_limits_of_the_folder(folders):
    _, processor = load(folders['tied'])
    assert processor.limits == dict(min_pixels=784, max_pixels=50176, video_min_pixels=784, video_max_pixels=50176,
                                    video_total_pixels=500000)


def test_colours_are_normalised_as_the_folder_says(released):
    file = released / 'preprocessor_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'image_mean': [0.5, 0.5, 0.5]}))
    assert load(released)[0].image_mean == (0.5, 0.5, 0.5)


def test_a_wrong_placeholder_id_is_refused(released):
    config = json.loads((released / 'config.json').read_text())
    config['image_token_id'] += 1
    (released / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match="image_token_id: .* is not the id of '<|image_pad|>'"):
        load(released)


def test_a_folder_without_tokenizer_gives_only_the_model(released):
    (released / 'tokenizer.json').unlink()
    assert load_model(released).language_model.vocab_size == 300
    with pytest.raises(ValueError, match='tokenizer.json'):
        load(released)


def test_wrong_arguments(released, tmp_path):
    with pytest.raises(ValueError, match="dtype: expected 'auto'"):
        load_model(released, dtype='bfloat16')
    with pytest.raises(ValueError, match='not a model folder'):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match='no such folder'):
        load(tmp_path / 'absent')


def test_importing_the_package_imports_nothing_else():
    code = ('import sys, qvlkit; names = dir(qvlkit);'
            'heavy = {"torch", "numpy", "mmengine", "transformers"} & set(sys.modules);'
            'assert not heavy, heavy; assert {"load", "generate", "save_pretrained"} <= set(names); qvlkit.load;'
            'heavy = {"cv2", "transformers", "deepspeed", "ray", "gradio", "matplotlib"} & set(sys.modules);'
            'assert not heavy, heavy')
    subprocess.run([sys.executable, '-c', code], check=True)
    with pytest.raises(AttributeError, match='has no attribute'):
        _ = qvlkit.lod
