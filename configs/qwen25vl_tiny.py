"""Qwen2.5-VL with a few million parameters, on picture tasks that it makes itself and questions on real photos.

Purpose:   the newcomer's first command, an end-to-end test, and the proxy on which ablations start.
Command:   python tools/train.py configs/qwen25vl_tiny.py
Hardware:  two CPU cores, 2 GiB of memory, about 3 minutes. Downloads nothing.
Expected:  work/qwen25vl_tiny/sft/report.html shows, for each task, held-out accuracy beside chance and beside the
           untrained model. The least of seeds 0, 1 and 2, with chance in brackets: name 72 % (8), count 72 % (17),
           locate 73 % (12), read 99 % (9), photo subject 98 % (11). What it took: docs/lab_notes.md.
"""

model = dict(
    vision_encoder=dict(type='Qwen25ViT', width=128, depth=4, num_heads=4, feed_forward_width=344, patch_size=14,
                        temporal_patch_size=2, window_size=56, full_attention_blocks=[1, 3]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[4, 6, 6], tokens_per_second=2, theta=10000.0),
    language_model=dict(type='Qwen2Decoder', width=128, depth=4, num_heads=4, num_kv_heads=2, feed_forward_width=352,
                        tie_embeddings=True),
    attention='sdpa')

tokenizer = dict(type='ByteLevelBPE', vocab_size=512)
processor = dict(min_pixels=56 * 56, max_pixels=140 * 140)

stages = dict(
    sft=dict(
        trainer=dict(type='SFTTrainer'),
        data=dict(type='Mixture', parts=dict(
            picture_tasks=dict(dataset=dict(type='PictureTasks', size=40000, questions_per_picture=1), weight=14.0),
            photos=dict(dataset=dict(type='PhotoQuestions', size=2000, tasks=['subject']), weight=1.0))),
        loader=dict(row_length=1024, window=256, num_workers=1),
        max_steps=850,
        max_grad_norm=1.0,
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, betas=[0.9, 0.95]),
        schedule=dict(type='WarmupCosine', warmup_ratio=0.05, final_ratio=0.02),
        hooks=dict(
            console=dict(type='ConsoleHook', interval=10),
            jsonl=dict(type='JSONLHook', interval=10),
            sources=dict(type='SourcesHook', interval=100),
            checkpoint=dict(type='CheckpointHook', interval=200, keep=1),
            evaluation=dict(type='EvaluationHook', max_new_tokens=28, dataset=dict(
                type='Mixture', parts=dict(
                    picture_tasks=dict(dataset=dict(type='PictureTasks', size=400, split='held_out')),
                    photos=dict(dataset=dict(
                        type='PhotoQuestions', size=100, tasks=['subject'], split='held_out'))))))))

run = ['sft']
seed = 0
work_dir = 'work/qwen25vl_tiny'
