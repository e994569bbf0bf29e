"""Documents: a page and its content in QwenVL HTML.

Purpose: the whole page at once: text, tables, charts, formulas and where they stand; from the multimodal stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"messages": [...], "images": ["page.png"]}, the answer HTML with data-bbox="x1 y1 x2 y2".
Page:    docs/data_kinds/document.md, with twenty samples in samples/document/.
"""
_document = dict(
    dataset=dict(type='ConversationDataset', path='data/document.jsonl'),
    weight=1.5, oversize='shrink', limits=dict(max_pixels=4096 * 28 * 28))
