"""Low-rank adapters on the language model of a released Qwen2.5-VL-7B, on one GPU, on your own conversations.

Purpose:  fine-tune where gradients and optimizer states of 8 billion parameters do not fit; everything else is frozen.
Command:  python tools/train.py configs/lora_7b.py --load-from RELEASED_FOLDER
              --set tokenizer.path=RELEASED_FOLDER stages.sft.data.path=CONVERSATIONS.json stages.sft.max_steps=STEPS
Hardware: one GPU with 80 GB, tight: an estimated 74 GiB with rows of 4,096 tokens, of which 31 are weights in float32
    and 42 activations and the head; stages.sft.loader.row_length=2048 needs about 21 less.
Expected: about 1 % of the parameters trains. work/lora_7b/sft holds checkpoints, log.jsonl and composition.json.
"""
_base_ = 'sft_7b_own_json.py'

stages = dict(sft=dict(
    lora=dict(parts=['language_model'], rank=16, alpha=32),
    parts=dict(merger=dict(trainable=False)),
    loader=dict(row_length=4096), accumulation=16,
    optimizer=dict(lr=1e-4)))

work_dir = 'work/lora_7b'
