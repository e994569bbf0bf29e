"""Mathematics: a figure or chart, a question, and the way to the answer.

Purpose: reasoning over what a picture shows, step by step; from the multimodal stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"messages": [...], "images": ["a.jpg"]}, the steps in the answer.
Page:    docs/data_kinds/maths.md, with twenty samples in samples/maths/.
"""
_maths = dict(
    dataset=dict(type='ConversationDataset', path='data/maths.jsonl'),
    weight=1.0, oversize='shrink', limits=dict(max_pixels=1280 * 28 * 28))
