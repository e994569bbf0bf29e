"""The decoder against a plain loop over layers, heads and tokens, on three tokens.

Shapes: T tokens, E width, H heads, Hk key-value heads, d head width.
"""
import torch
from torch.nn import functional as F

from qvlkit.models.language_models.qwen2_decoder import Qwen2Decoder
from qvlkit.structures import AttentionPlan

WIDTH, HEADS, KV_HEADS, D = 8, 4, 2, 2


def decoder(**settings):
    torch.manual_seed(0)
    model = Qwen2Decoder(WIDTH, 2, num_heads=HEADS, num_kv_heads=KV_HEADS, feed_forward_width=6, vocab_size=11,
                         **settings).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def norm(x, weight):
    return x / (x.square().mean() + 1e-6).sqrt() * weight


def turned(pair, angle):
    """A head of two values, turned."""
    return torch.stack([pair[0] * angle.cos() - pair[1] * angle.sin(), pair[1] * angle.cos() + pair[0] * angle.sin()])


def attended(layer, rows, angles):
    """List of T rows (E,) -> the same, each from itself and those before it."""
    project = {name: [getattr(layer.self_attn, f'{name}_proj')(row).split(D) for row in rows] for name in 'qkv'}
    result = []
    for place in range(len(rows)):
        heads = []
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            q = turned(project['q'][place][head], angles[place])
            scores = torch.stack([q @ turned(project['k'][other][shared], angles[other]) / D**0.5
                                  for other in range(place + 1)])
            heads.append(sum(share * project['v'][other][shared] for other, share in enumerate(scores.softmax(0))))
        result.append(layer.self_attn.o_proj.weight @ torch.cat(heads))
    return result


def test_it_equals_a_loop_over_layers_heads_and_tokens():
    model, angles = decoder(), torch.tensor([[0.3], [1.1], [2.5]], dtype=torch.float64)
    embeddings = torch.randn(3, WIDTH, dtype=torch.float64)
    rows = list(embeddings)
    for layer in model.layers:
        change = attended(layer, [norm(row, layer.input_layernorm.weight) for row in rows], angles[:, 0])
        rows = [row + new for row, new in zip(rows, change, strict=True)]
        inner = [norm(row, layer.post_attention_layernorm.weight) for row in rows]
        gate, up, down = (getattr(layer.mlp, f'{name}_proj').weight for name in ('gate', 'up', 'down'))
        rows = [row + down @ (F.silu(gate @ x) * (up @ x)) for row, x in zip(rows, inner, strict=True)]
    expected = torch.stack([norm(row, model.norm.weight) for row in rows])
    hidden = model(embeddings, (angles.cos(), angles.sin()), AttentionPlan.from_lengths([3], causal=True))
    torch.testing.assert_close(hidden, expected)
    torch.testing.assert_close(model.logits(hidden), expected @ model.lm_head.weight.T)


def test_tied_logits_are_products_with_the_embedding():
    model = decoder(tie_embeddings=True)
    hidden = torch.randn(2, WIDTH, dtype=torch.float64)
    assert model.lm_head is None and model.embed(torch.tensor([4])).equal(model.embed_tokens.weight[4:5])
    torch.testing.assert_close(model.logits(hidden), hidden @ model.embed_tokens.weight.T)
