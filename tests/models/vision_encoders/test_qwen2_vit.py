"""The encoder of Qwen2-VL against a plain loop over patches and heads, on two frame groups of four patches."""
import torch

from qvlkit.models.vision_encoders.qwen2_vit import Qwen2ViT

WIDTH, HEADS, D = 16, 2, 8


def norm(x, layer):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt() * layer.weight + layer.bias


def turned(x, row, column):
    """A head of eight values: value i turns with value i + 4; two angles follow the row, two the column."""
    angles = torch.tensor([row, row / 100, column, column / 100], dtype=torch.float64)
    first, second = x[:4], x[4:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])


def attended(attention, rows, positions):
    """List of rows of one frame group -> the same, each from all of them."""
    qkv = [attention.qkv(row).view(3, HEADS, D) for row in rows]
    result = []
    for place in range(len(rows)):
        heads = []
        for head in range(HEADS):
            q = turned(qkv[place][0, head], *positions[place])
            scores = torch.stack([q @ turned(other[1, head], *positions[index]) / D**0.5
                                  for index, other in enumerate(qkv)])
            heads.append(sum(share * other[2, head] for share, other in zip(scores.softmax(0), qkv, strict=True)))
        result.append(attention.proj(torch.cat(heads)))
    return result


def test_it_equals_a_loop_over_patches_and_heads():
    torch.manual_seed(0)
    model = Qwen2ViT(WIDTH, 2, num_heads=HEADS, feed_forward_width=10, patch_size=1, in_channels=1).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    patches = torch.randn(8, 2, dtype=torch.float64)
    positions = [(0, 0), (0, 1), (1, 0), (1, 1)]
    features = []
    for group in patches.split(4):
        rows = [model.patch_embed.proj.weight @ patch for patch in group]
        for block in model.blocks:
            change = attended(block.attn, [norm(row, block.norm1) for row in rows], positions)
            rows = [row + new for row, new in zip(rows, change, strict=True)]
            hidden = [block.mlp.fc1(norm(row, block.norm2)) for row in rows]
            rows = [row + block.mlp.fc2(h / (1 + (-1.702 * h).exp())) for row, h in zip(rows, hidden, strict=True)]
        features += rows
    plan = model.plan([(2, 2, 2)])
    assert plan.order.tolist() == list(range(8)) and plan.token_order.tolist() == [0, 1]
    torch.testing.assert_close(model(patches, plan), torch.stack(features), rtol=1e-5, atol=1e-6)
