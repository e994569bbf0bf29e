"""Multimodal pre-training: every part trains, on what the visual stage had and on all kinds of tasks and plain text.

Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2 and table 2: 2T tokens in rows of 8,192. Rates and
         weights of the mixture are not given; these are customary.
Data:    one fragment for each kind, ../data/; docs/data_kinds/README.md.
"""
_base_ = ['visual.py', '../data/text.py', '../data/interleaved.py', '../data/vqa.py', '../data/maths.py',
          '../data/grounding.py', '../data/document.py', '../data/video.py', '../data/agent.py']

_multimodal_tokens = 2_000_000_000_000
_multimodal_parts = dict(
    caption=_base_._caption, visual_knowledge=_base_._visual_knowledge, ocr=_base_._ocr, text=_base_._text,
    interleaved=_base_._interleaved, vqa=_base_._vqa, maths=_base_._maths, grounding=_base_._grounding,
    document=_base_._document, video=_base_._video, agent=_base_._agent)
_multimodal = dict(
    trainer=dict(type='PretrainTrainer'),
    data=dict(type='Mixture', by='token', parts=_multimodal_parts),
    loader=dict(row_length=8192, num_workers=8, on_error='skip'),
    max_steps=1000, accumulation=1, max_grad_norm=1.0,
    parts=dict(vision_encoder=dict(trainable=True), merger=dict(trainable=True), language_model=dict(trainable=True)),
    optimizer=dict(type='AdamW', lr=5e-5, weight_decay=0.1, betas=[0.9, 0.95]),
    schedule=dict(type='WarmupCosine', warmup_ratio=0.01, final_ratio=0.1))
