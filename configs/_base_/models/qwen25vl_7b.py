"""Qwen2.5-VL-7B: 8,292,166,656 parameters."""
_base_ = ['qwen25vl.py']
model = dict(
    language_model=dict(type='Qwen2Decoder', width=3584, depth=28, num_heads=28, num_kv_heads=4,
                        feed_forward_width=18944, vocab_size=152064, tie_embeddings=False, norm_eps=1e-6))
