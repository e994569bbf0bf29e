"""Questions about pictures: questions and answers about a picture.

Purpose: to answer what is asked, over several turns; from the multimodal stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"messages": [...], "images": ["a.jpg"]}.
Page:    docs/data_kinds/vqa.md, with twenty samples in samples/vqa/.
"""
_vqa = dict(
    dataset=dict(type='ConversationDataset', path='data/vqa.jsonl'),
    weight=2.0, oversize='shrink', limits=dict(max_pixels=1280 * 28 * 28))
