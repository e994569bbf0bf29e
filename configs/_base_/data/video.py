"""Videos: a clip, and what happens in it when.

Purpose: motion, order and time in seconds; from the multimodal stage on.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"messages": [...], "videos": ["a.mp4"]}, or a list of frames with "fps".
Page:    docs/data_kinds/video.md, with twenty samples in samples/video/.
"""
_video = dict(
    dataset=dict(type='ConversationDataset', path='data/video.jsonl'),
    weight=2.0, oversize='shrink',
    limits=dict(fps=[0.5, 1.0, 2.0, 4.0], max_frames=96, video_total_pixels=6144 * 28 * 28))
