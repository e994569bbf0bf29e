"""Supervised fine-tuning of Qwen2.5-VL-7B (8,292,166,656 parameters) on your own conversations.

Purpose: train the merger and the language model on a LLaVA, ShareGPT or OpenAI conversation file.
Command: python tools/train.py configs/qwen25vl_7b.py --load-from RELEASED_FOLDER
             --set tokenizer.path=RELEASED_FOLDER stages.sft.data.path=CONVERSATIONS.json
         python tools/train.py configs/qwen25vl_7b.py --dry-run        shapes, counts and costs, with no file at hand
Hardware: Training keeps 16 bytes for a trained parameter in float32: about 117 GiB plus activations, so one GPU with 141 GB
    or more. --dry-run needs two CPU cores, 4 GiB and half a minute.
Expected: the dry run prints 8,292,166,656 parameters and ends with 'dry run passed'.
"""
_base_ = ['_base_/models/qwen25vl_7b.py', '_base_/stages/sft.py']

tokenizer = dict(type='HFTokenizer', path='checkpoints/Qwen2.5-VL-7B-Instruct')
work_dir = 'work/qwen25vl_7b'
