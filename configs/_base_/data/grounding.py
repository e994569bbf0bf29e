"""Grounding: a picture and where its things are.

Purpose: boxes, points and outlines in absolute pixels, also of what is not there; from the multimodal stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"image": "a.jpg", "objects": [{"bbox": [x1, y1, x2, y2], "label": "cat"}, {"bbox": null, "label": "dog"}]}.
Page:    docs/data_kinds/grounding.md, with twenty samples in samples/grounding/.
"""
_grounding = dict(
    dataset=dict(type='ConversationDataset', path='data/grounding.jsonl'),
    weight=2.0, oversize='shrink', limits=dict(max_pixels=1280 * 28 * 28))
