"""Qwen2.5-VL-3B: 3,754,622,976 parameters, the embedding used as the output head."""
_base_ = ['qwen25vl.py']
model = dict(
    language_model=dict(type='Qwen2Decoder', width=2048, depth=36, num_heads=16, num_kv_heads=2,
                        feed_forward_width=11008, vocab_size=151936, tie_embeddings=True, norm_eps=1e-6))
