"""Long-context pre-training: every part trains, in rows four times as long, with long videos, documents and tasks.

Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2 and table 2: 0.6T tokens in rows of 32,768. Rates
         and weights of the mixture are not given; these are customary.
Data:    one fragment for each kind, ../data/; docs/data_kinds/README.md.
"""
_base_ = ['multimodal.py', '../data/long_video.py', '../data/long_document.py', '../data/long_agent.py']

_long_context_tokens = 600_000_000_000
_long_context = dict(
    trainer=dict(type='PretrainTrainer'),
    data=dict(type='Mixture', by='token', parts=dict(
        _base_._multimodal_parts, long_video=_base_._long_video, long_document=_base_._long_document,
        long_agent=_base_._long_agent)),
    loader=dict(row_length=32768, num_workers=8, on_error='skip'),
    max_steps=1000, accumulation=1, max_grad_norm=1.0,
    parts=dict(vision_encoder=dict(trainable=True), merger=dict(trainable=True), language_model=dict(trainable=True)),
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.1, betas=[0.9, 0.95]),
    schedule=dict(type='WarmupCosine', warmup_ratio=0.01, final_ratio=0.1))
