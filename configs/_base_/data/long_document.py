"""Long documents: a document of many pages, with questions at its end.

Purpose: to use what stands far above; the long-context stage.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"text": "... <image> ...", "images": [...]}; read as a document.
Page:    docs/data_kinds/long_document.md, with twenty samples in samples/long_document/.
"""
_long_document = dict(
    dataset=dict(type='ConversationDataset', path='data/long_document.jsonl'),
    weight=1.0, oversize='drop', limits=dict(max_pixels=1280 * 28 * 28))
