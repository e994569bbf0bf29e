"""Captions: a picture and what it shows.

Purpose: gives the vision encoder words for what it sees; from the visual stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"image": "a.jpg", "caption": "..."}, or "video"; read as a document.
Page:    docs/data_kinds/caption.md, with twenty samples in samples/caption/.
"""
_caption = dict(
    dataset=dict(type='ConversationDataset', path='data/caption.jsonl'),
    weight=3.0, oversize='shrink', limits=dict(max_pixels=1280 * 28 * 28))
