"""Screen agents: a task, screenshots, and one action for each.

Purpose: to operate phones and computers by function calls; from the multimodal stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"task": "...", "platform": "mobile", "steps": [{"screenshot": "0.png", "thought": "...", "action": {...}}]}.
Page:    docs/data_kinds/agent.md, with twenty samples in samples/agent/.
"""
_agent = dict(
    dataset=dict(type='ConversationDataset', path='data/agent.jsonl'),
    weight=1.0, oversize='drop', limits=dict(max_pixels=1280 * 28 * 28))
