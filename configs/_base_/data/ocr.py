"""Text in pictures: a picture with writing, and its lines with their boxes.

Purpose: reading, in many languages, and where each line stands; from the visual stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"messages": [...], "images": ["a.jpg"]}, the answer JSON of "bbox_2d" and "text_content".
Page:    docs/data_kinds/ocr.md, with twenty samples in samples/ocr/.
"""
_ocr = dict(
    dataset=dict(type='ConversationDataset', path='data/ocr.jsonl', boxes='source'),
    weight=2.0, oversize='shrink', limits=dict(max_pixels=4096 * 28 * 28))
