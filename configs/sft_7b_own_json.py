"""Supervised fine-tuning of a released Qwen2.5-VL-7B (8,292,166,656 parameters) on your own conversations.

Purpose:  train the merger and the language model on a LLaVA, ShareGPT or OpenAI file; nothing else of the recipe.
Command:  python tools/train.py configs/sft_7b_own_json.py --load-from RELEASED_FOLDER
              --set tokenizer.path=RELEASED_FOLDER stages.sft.data.path=CONVERSATIONS.json stages.sft.max_steps=STEPS
          python tools/inspect_data.py configs/sft_7b_own_json.py --set ...    first: what the model will see
Hardware: an estimated 189 GiB with rows of 8,192 tokens (117 of them weights, gradients and optimizer states), so one
    GPU with 256 GB; shorter rows (stages.sft.loader.row_length) need less. --dry-run: two CPU cores, 1 GiB, 20 seconds.
Expected: the dry run (--dry-run, no file at hand) prints 8,292,166,656 parameters and ends with 'dry run passed'. A
    real run ends with a checkpoint in work/sft_7b_own_json/sft that chats: python tools/convert.py to-hf.
"""
_base_ = 'qwen25vl_7b.py'

stages = dict(sft=dict(
    data=dict(_delete_=True, type='ConversationDataset', path='data/sft.json'),
    loader=dict(row_length=8192, num_workers=2), accumulation=8, max_steps=1000))

run = ['sft']
work_dir = 'work/sft_7b_own_json'
