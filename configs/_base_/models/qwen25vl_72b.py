"""Qwen2.5-VL-72B: 73,410,777,344 parameters. Its vision encoder has a feed-forward width of 3456, not 3420."""
_base_ = ['qwen25vl.py']
model = dict(
    vision_encoder=dict(feed_forward_width=3456),
    language_model=dict(type='Qwen2Decoder', width=8192, depth=80, num_heads=64, num_kv_heads=8,
                        feed_forward_width=29568, vocab_size=152064, tie_embeddings=False, norm_eps=1e-6))
