"""Long videos: a video of minutes or hours, with events and their times.

Purpose: to find a moment in a long stretch; the long-context stage.
Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2.1 and table 2. The weight is customary.
Format:  {"messages": [...], "videos": ["a.mp4"]}.
Page:    docs/data_kinds/long_video.md, with twenty samples in samples/long_video/.
"""
_long_video = dict(
    dataset=dict(type='ConversationDataset', path='data/long_video.jsonl'),
    weight=1.0, oversize='shrink',
    limits=dict(fps=[0.5, 1.0, 2.0], max_frames=768, video_min_pixels=64 * 28 * 28,
                video_total_pixels=24576 * 28 * 28))
