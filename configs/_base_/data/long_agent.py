"""Long agent trajectories: a task of many steps on a screen.

Purpose: to keep to a task over a long history; the long-context stage.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"task": "...", "platform": "computer", "steps": [...]}, as for agents.
Page:    docs/data_kinds/long_agent.md, with twenty samples in samples/long_agent/.
"""
_long_agent = dict(
    dataset=dict(type='ConversationDataset', path='data/long_agent.jsonl'),
    weight=1.0, oversize='drop', limits=dict(max_pixels=1280 * 28 * 28))
