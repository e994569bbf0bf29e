"""Small random models that transformers itself wrote, in folders as they are released."""
import json
import shutil

import pytest
import torch

TEXTS = ['A picture of a cat on a mat.', 'What colour is the square? It is red.', 'one two three four five']
TOKENS = {'image_token_id': '<|image_pad|>', 'video_token_id': '<|video_pad|>',
          'vision_start_token_id': '<|vision_start|>', 'vision_end_token_id': '<|vision_end|>'}


def make_folder(folder, *, tied, dtype=torch.float32):
    """A Qwen2.5-VL with random weights, its tokenizer and its processor's files."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from qvlkit.data.preprocessor_config import preprocessor_configs
    from qvlkit.data.tokenizers import ByteLevelBPE
    from qvlkit.structures import VisionGeometry
    tokenizer = ByteLevelBPE(290, texts=TEXTS)
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config=dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, bos_token_id=1,
                         eos_token_id=2, rope_parameters=dict(
                             rope_type='default', mrope_section=[2, 3, 3], rope_theta=1e6)),
        vision_config=dict(depth=4, hidden_size=64, intermediate_size=80, num_heads=4, out_hidden_size=64,
                           fullatt_block_indexes=[3], tokens_per_second=2),
        tie_word_embeddings=tied, **{key: tokenizer.special_id(token) for key, token in TOKENS.items()})
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # norms and biases differ from their first values too
    model.to(dtype).save_pretrained(folder)
    tokenizer.save(folder)
    image, video = preprocessor_configs(VisionGeometry(14, 2, 2), dict(
        min_pixels=784, max_pixels=50176, video_min_pixels=784, video_max_pixels=50176, video_total_pixels=500000))
    (folder / 'preprocessor_config.json').write_text(json.dumps(image))
    (folder / 'video_preprocessor_config.json').write_text(json.dumps(video))
    (folder / 'chat_template.jinja').write_text('{{ messages }}')
    return folder


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    """{'untied': folder, 'tied': folder}: not to be changed."""
    root = tmp_path_factory.mktemp('released')
    return {name: make_folder(root / name, tied=name == 'tied') for name in ('untied', 'tied')}


@pytest.fixture
def released(folders, tmp_path):
    """The untied folder, to be changed."""
    return shutil.copytree(folders['untied'], tmp_path / 'released')
