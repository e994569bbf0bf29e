"""Visual knowledge: a picture of a known thing and what is known of it.

Purpose: names of people, landmarks, plants, animals and the like; from the visual stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"image": "a.jpg", "caption": "..."}; read as a document.
Page:    docs/data_kinds/visual_knowledge.md, with twenty samples in samples/visual_knowledge/.
"""
_visual_knowledge = dict(
    dataset=dict(type='ConversationDataset', path='data/visual_knowledge.jsonl'),
    weight=1.0, oversize='shrink', limits=dict(max_pixels=1280 * 28 * 28))
