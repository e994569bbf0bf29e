"""Supervised fine-tuning: merger and language model learn to answer, the vision encoder is frozen.

Source:  Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.3: about two million conversations, half of them text,
         half with pictures or videos, in the subsets below. Shares of the subsets, epochs and rates are not given;
         these are customary.
Data:    conversations in any format of docs/data_formats.md, one file for each subset.
"""
_sft_tokens = 6_000_000_000  # an estimate: two million conversations of 1,500 tokens, twice
_sft_text = dict(general=4.0, maths=2.0, code=2.0, security=0.5)
_sft_multimodal = dict(vqa=4.0, caption=1.0, maths=1.5, code=0.5, security=0.5, document=2.0, grounding=1.5,
                       video=1.5, agent=1.0)
_sft = dict(
    trainer=dict(type='SFTTrainer'),
    data=dict(type='Mixture', parts=dict(
        text=dict(weight=0.5, dataset=dict(type='Mixture', parts={
            name: dict(dataset=dict(type='ConversationDataset', path=f'data/sft/text_{name}.jsonl'), weight=weight,
                       oversize='drop') for name, weight in _sft_text.items()})),
        multimodal=dict(weight=0.5, dataset=dict(type='Mixture', parts={
            name: dict(dataset=dict(type='ConversationDataset', path=f'data/sft/{name}.jsonl'), weight=weight,
                       oversize='shrink') for name, weight in _sft_multimodal.items()})))),
    loader=dict(row_length=32768, num_workers=4, on_error='raise'),
    max_steps=1000, accumulation=1, max_grad_norm=1.0,
    parts=dict(vision_encoder=dict(trainable=False), merger=dict(trainable=True), language_model=dict(trainable=True)),
    optimizer=dict(type='AdamW', lr=1e-5, weight_decay=0.0, betas=[0.9, 0.95]),
    schedule=dict(type='WarmupCosine', warmup_ratio=0.03, final_ratio=0.0))
