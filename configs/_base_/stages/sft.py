"""Supervised fine-tuning on a conversation file: merger and language model train, the vision encoder is frozen.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.3.1. The report gives no rates; these
are customary.
"""
stages = dict(sft=dict(
    trainer=dict(type='SFTTrainer'),
    data=dict(type='ConversationDataset', path='data/sft.json'),
    loader=dict(row_length=8192, num_workers=2, on_error='raise'),
    max_steps=1000, accumulation=8, max_grad_norm=1.0,
    parts=dict(vision_encoder=dict(trainable=False), merger=dict(trainable=True), language_model=dict(trainable=True)),
    optimizer=dict(type='AdamW', lr=1e-5, weight_decay=0.0, betas=[0.9, 0.95]),
    schedule=dict(type='WarmupCosine', warmup_ratio=0.03, final_ratio=0.0),
    hooks=dict(console=dict(type='ConsoleHook', interval=10), jsonl=dict(type='JSONLHook', interval=10),
               tensorboard=dict(type='TensorBoardHook', interval=10), sources=dict(type='SourcesHook', interval=100),
               checkpoint=dict(type='CheckpointHook', interval=500, keep=2))))
run = ['sft']
seed = 0
precision = 'auto'
plugins = []
