"""Direct preference optimization of the tiny Qwen2.5-VL on a preference file of your own.

Purpose:   check pairs and the whole path to the loss before a large model is paid for.
Command:   python tools/train.py configs/dpo_tiny.py --set stages.dpo.data.parts.pairs.dataset.path=PAIRS.json
           from a tiny model of the recipe: --load-from work/qwen25vl_tiny/sft
               (then also tokenizer.type=HFTokenizer tokenizer.path=work/qwen25vl_tiny/tokenizer)
Hardware:  two CPU cores, 2 GiB of memory, minutes. Downloads nothing.
Expected:  work/dpo_tiny/dpo/log.jsonl begins with a loss of 0.69, log 2. Pairs are seen more than once.
"""
_base_ = 'qwen25vl_tiny.py'

processor = dict(max_pixels=224 * 224)

stages = dict(dpo=dict(
    _delete_=True,
    trainer=dict(type='DPOTrainer', loss=dict(type='DPOLoss', beta=0.1), allow_repeats=True),
    data=dict(type='Mixture', parts=dict(
        pairs=dict(dataset=dict(type='ConversationDataset', path='data/preference.json', format='preference'),
                   oversize='drop'))),
    loader=dict(row_length=2048, window=64, num_workers=1),
    max_steps=100, max_grad_norm=1.0,
    parts=dict(vision_encoder=dict(trainable=False)),
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.0, betas=[0.9, 0.95]),
    schedule=dict(type='WarmupCosine', warmup_ratio=0.1, final_ratio=0.0),
    hooks=dict(console=dict(type='ConsoleHook', interval=10), jsonl=dict(type='JSONLHook', interval=10),
               checkpoint=dict(type='CheckpointHook', interval=100, keep=1))))

run = ['dpo']
work_dir = 'work/dpo_tiny'
