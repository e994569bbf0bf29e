import torch

from qvlkit.losses.cross_entropy import LinearCrossEntropy
from qvlkit.planning.rehearsal import rehearse


def prepare(frozen=()):
    def freeze(model):
        for part in frozen:
            getattr(model, part).requires_grad_(False)
        return lambda batch: LinearCrossEntropy()(model(batch).index_select(0, batch.target_rows),
                                                  model.language_model.head_weight, batch.target_ids)
    return freeze


def test_shapes_are_those_of_the_real_pass(small):
    row = small.row
    found = rehearse(small.build, prepare(), row, compute_dtype=torch.float32)
    model = small.build(seed=0)
    features = model.encode(row)
    tokens = model.merger(features)
    assert found.chain == [
        ('image patches', tuple(row.image_patches.shape)), ('video patches', tuple(row.video_patches.shape)),
        ('features', tuple(features.shape)), ('visual tokens', tuple(tokens.shape)),
        ('hidden states', (row.num_tokens, model.language_model.width)), ('target rows', (row.num_targets,)),
        ('loss', ())]
    assert tokens.shape[0] == row.visual_rows.numel() == row.vision_plan.token_order.numel()
    assert sum(found.gradients.values()) == sum(p.numel() for p in model.parameters())


def test_frozen_parts_receive_no_gradient_and_bf16_keeps_less(small):
    whole = rehearse(small.build, prepare(), small.row, compute_dtype=torch.float32)
    found = rehearse(small.build, prepare(['vision_encoder']), small.row, compute_dtype=torch.bfloat16)
    assert set(found.gradients) == {'merger', 'language_model'}
    assert 0 < found.activations < whole.activations
