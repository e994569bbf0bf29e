"""What Qwen2.5-VL's three sizes share: the vision encoder, the merger, M-RoPE and the pixel limits.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, table 1, and the released 3B, 7B and 72B configurations.
"""
model = dict(
    vision_encoder=dict(type='Qwen25ViT', width=1280, depth=32, num_heads=16, feed_forward_width=3420, patch_size=14,
                        temporal_patch_size=2, window_size=112, full_attention_blocks=[7, 15, 23, 31]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[16, 24, 24], tokens_per_second=2, theta=1e6),
    attention='sdpa')
processor = dict(min_pixels=3136, max_pixels=12845056)
