"""Supervised fine-tuning of Qwen2.5-VL-3B (3,754,622,976 parameters) on your own conversations.

Purpose:  train the merger and the language model on a LLaVA, ShareGPT or OpenAI conversation file.
Command:  python tools/train.py configs/qwen25vl_3b.py --dry-run
              shapes, counts and costs, with no file at hand
          python tools/train.py configs/qwen25vl_3b.py --load-from RELEASED_FOLDER
              --set tokenizer.path=RELEASED_FOLDER stages.sft.data.path=CONVERSATIONS.json
Hardware: an estimated 99 GiB with rows of 8,192 tokens (49 of them weights, gradients and optimizer states), so one GPU
    with 141 GB; shorter rows (stages.sft.loader.row_length) need less. --dry-run: two CPU cores, 1 GiB, 20 seconds.
Expected: the dry run prints 3,754,622,976 parameters and ends with 'dry run passed'.
"""
_base_ = ['_base_/models/qwen25vl_3b.py', '_base_/stages/sft.py']

tokenizer = dict(type='HFTokenizer', path='checkpoints/Qwen2.5-VL-3B-Instruct')
work_dir = 'work/qwen25vl_3b'
