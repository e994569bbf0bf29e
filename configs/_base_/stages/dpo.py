"""Direct preference optimization: the better of two answers, held to the model that the stage begins with.

Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.3: pairs of pictures and text, and of text alone, each
         seen once, the vision encoder frozen; arXiv 2305.18290. Beta and rates are not given; these are customary.
Data:    preference records, docs/record_formats.md; the stage ends when every pair has been seen.
"""
_dpo = dict(
    trainer=dict(type='DPOTrainer', loss=dict(type='DPOLoss', beta=0.1)),
    data=dict(type='Mixture', parts={
        name: dict(dataset=dict(type='ConversationDataset', path=f'data/dpo/{name}.jsonl', format='preference'),
                   weight=0.5, epochs=1, oversize=oversize)
        for name, oversize in dict(image_text='shrink', text='drop').items()}),
    loader=dict(row_length=8192, num_workers=4, on_error='raise'),
    max_steps=1000, accumulation=1, max_grad_norm=1.0,
    parts=dict(vision_encoder=dict(trainable=False), merger=dict(trainable=True), language_model=dict(trainable=True)),
    optimizer=dict(type='AdamW', lr=5e-7, weight_decay=0.0, betas=[0.9, 0.95]),
    schedule=dict(type='WarmupCosine', warmup_ratio=0.1, final_ratio=0.0))
