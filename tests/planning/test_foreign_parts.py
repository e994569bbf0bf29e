"""Parts from transformers are rehearsed on fake tensors as ours are."""
import pytest
import torch

from qvlkit.data.collate import collate
from qvlkit.models.builder import build_model
from qvlkit.planning.rehearsal import rehearse
from qvlkit.structures import EncodedSample

PARTS = {
    'Qwen25ViT': dict(type='Qwen25ViT', width=32, depth=1, num_heads=2, feed_forward_width=40, patch_size=4,
                      window_size=16, full_attention_blocks=[0]),
    'Qwen2Decoder': dict(type='Qwen2Decoder', width=32, depth=2, num_heads=4, num_kv_heads=2, feed_forward_width=48),
    'HFDecoder': dict(type='HFDecoder', architecture='qwen3', width=32, depth=2, num_heads=4, num_kv_heads=2,
                      feed_forward_width=44),
    **{name: dict(type='HFVisionEncoder', architecture=f'{name}_vision_model', width=32, depth=1, num_heads=2,
                  feed_forward_width=40, patch_size=4, image_size=16) for name in ('siglip', 'siglip2')}}


@pytest.mark.parametrize('encoder, decoder', [('Qwen25ViT', 'HFDecoder'), ('siglip', 'Qwen2Decoder'),
                                              ('siglip2', 'HFDecoder')])
def test_a_row_is_rehearsed(encoder, decoder):
    config = dict(vision_encoder=PARTS[encoder], merger=dict(type='ResamplerMerger', queries=[2, 2]),
                  position_encoding=dict(type='RoPE1D'), language_model=PARTS[decoder])
    rules = build_model(config, vocab_size=30, device='meta')
    rows = torch.arange(2, 6)
    sample = EncodedSample('sample', torch.arange(9), torch.arange(9) > 6, torch.arange(9)[None],
                           [torch.zeros(24, 48, dtype=torch.uint8).numpy()], [(1, 4, 6)], ['image'], [4], rows)
    batch = collate([sample], plan=rules.plan, geometry=rules.geometry)
    shown = rehearse(lambda: build_model(config, vocab_size=30, seed=0),
                     lambda model: lambda row: model.logits(row)[row.target_rows].sum(), batch,
                     compute_dtype=torch.bfloat16)
    assert [item for item in shown.chain if item[0] != 'image patches'][:3] == [
        ('features', (24, 32)), ('visual tokens', (4, 32)), ('hidden states', (9, 32))]
    assert shown.gradients == {part: sum(parameter.numel() for parameter in module.parameters())
                               for part, module in rules.parts().items()}
    assert shown.activations > 0
