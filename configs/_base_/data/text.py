"""Text: plain text without pictures.

Purpose: keeps the language model what it was; from the multimodal stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"text": "..."}; read as a document.
Page:    docs/data_kinds/text.md, with twenty samples in samples/text/.
"""
_text = dict(
    dataset=dict(type='ConversationDataset', path='data/text.jsonl'),
    weight=4.0, oversize='drop')
