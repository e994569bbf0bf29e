"""Visual pre-training: vision encoder and merger learn to speak to a language model that is frozen.

Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2 and table 2: 1.5T tokens in rows of 8,192; captions,
         visual knowledge, OCR. It names the vision encoder alone; the merger has first weights and must train with it.
         Rates and weights of the mixture are not given; these are customary.
Data:    one fragment for each kind, ../data/; docs/data_kinds/README.md.
"""
_base_ = ['../data/caption.py', '../data/visual_knowledge.py', '../data/ocr.py']

_visual_tokens = 1_500_000_000_000
_visual = dict(
    trainer=dict(type='PretrainTrainer'),
    data=dict(type='Mixture', by='token', parts=dict(
        caption=_base_._caption, visual_knowledge=_base_._visual_knowledge, ocr=_base_._ocr)),
    loader=dict(row_length=8192, num_workers=8, on_error='skip'),
    max_steps=1000, accumulation=1, max_grad_norm=1.0,
    parts=dict(vision_encoder=dict(trainable=True), merger=dict(trainable=True), language_model=dict(trainable=False)),
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.1, betas=[0.9, 0.95]),
    schedule=dict(type='WarmupCosine', warmup_ratio=0.01, final_ratio=0.1))
