"""Supervised fine-tuning of the tiny Qwen2.5-VL, from nothing, on a handful of your own conversations.

Purpose:   check annotation files and the whole path from pictures to loss, before a large model is paid for: what a
           large model is to learn, a tiny one must be able to memorise.
Command:   python tools/train.py configs/sft_chat_tiny.py
               --set stages.sft.data.parts.chat.dataset.path=CHAT.json
                     stages.sft.data.parts.grounding.dataset.path=GROUNDING.json
           a single file: --set stages.sft.data.type=ConversationDataset stages.sft.data.path=CONVERSATIONS.json
Hardware:  two CPU cores, 2 GiB of memory, about 2 minutes. Downloads nothing.
Expected:  work/sft_chat_tiny/sft/log.jsonl ends with a loss below 0.05 for a dozen conversations.
"""
_base_ = 'qwen25vl_tiny.py'

processor = dict(max_pixels=224 * 224)

stages = dict(
    sft=dict(
        data=dict(_delete_=True, type='Mixture', parts=dict(
            chat=dict(dataset=dict(type='ConversationDataset', path='data/chat.json'), weight=2.0),
            grounding=dict(dataset=dict(type='ConversationDataset', path='data/grounding.json')))),
        loader=dict(row_length=2048, window=9),
        max_steps=100,
        parts=dict(vision_encoder=dict(trainable=True)),
        optimizer=dict(lr=2e-3, weight_decay=0.0),
        schedule=dict(warmup_ratio=0.05, final_ratio=0.02),
        hooks=dict(checkpoint=dict(interval=100), evaluation=None)))

run = ['sft']
work_dir = 'work/sft_chat_tiny'
