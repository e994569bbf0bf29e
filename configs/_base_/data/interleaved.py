"""Interleaved text and pictures: a document with pictures between its lines.

Purpose: pictures and text that complete each other, and learning in context; from the multimodal stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"images": ["a.jpg", null], "texts": [null, "..."]}, or "text" with <image>, or "document" with parts.
Page:    docs/data_kinds/interleaved.md, with twenty samples in samples/interleaved/.
"""
_interleaved = dict(
    dataset=dict(type='ConversationDataset', path='data/interleaved.jsonl'),
    weight=2.0, oversize='shrink', limits=dict(max_pixels=1280 * 28 * 28))
