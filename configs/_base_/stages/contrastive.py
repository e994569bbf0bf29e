"""Contrastive pre-training: the vision encoder learns from pairs of a picture and its caption, from first weights.

Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2: DataComp and data of their own, pictures at their
         native aspect ratio. It gives neither the number of pairs nor rates; these are customary (arXiv 2103.00020).
Data:    captions, docs/data_kinds/caption.md; a row is `row_length` visual and text tokens of whole pairs.
"""
_contrastive = dict(
    trainer=dict(type='ContrastiveTrainer', loss=dict(type='InfoNCE')),
    towers=dict(text_tower=dict(type='TextTransformer', width=768, depth=12, num_heads=12),
                pooling=dict(type='AttentionPooling'), width=1024),
    data=dict(type='Mixture', parts=dict(
        pairs=dict(dataset=dict(type='ConversationDataset', path='data/pairs.jsonl', format='caption'),
                   weight=1.0, oversize='shrink', limits=dict(max_pixels=256 * 28 * 28)))),
    loader=dict(row_length=8192, num_workers=8, on_error='skip'),
    max_steps=100000, accumulation=1, max_grad_norm=1.0,
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.2, betas=[0.9, 0.98]),
    schedule=dict(type='WarmupCosine', warmup_steps=2000, final_ratio=0.0))
