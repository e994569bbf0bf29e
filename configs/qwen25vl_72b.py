"""Supervised fine-tuning of Qwen2.5-VL-72B (73,410,777,344 parameters) on your own conversations.

Purpose: train the merger and the language model on a LLaVA, ShareGPT or OpenAI conversation file.
Command: python tools/train.py configs/qwen25vl_72b.py --load-from RELEASED_FOLDER
             --set tokenizer.path=RELEASED_FOLDER stages.sft.data.path=CONVERSATIONS.json
         python tools/train.py configs/qwen25vl_72b.py --dry-run        shapes, counts and costs, with no file at hand
Hardware: More than one device holds: about 1.1 TiB. A real run on one device is refused, with the reason. --dry-run
    needs two CPU cores, 4 GiB and a minute.
Expected: the dry run prints 73,410,777,344 parameters and ends with 'dry run passed'.
"""
_base_ = ['_base_/models/qwen25vl_72b.py', '_base_/stages/sft.py']

tokenizer = dict(type='HFTokenizer', path='checkpoints/Qwen2.5-VL-72B-Instruct')
work_dir = 'work/qwen25vl_72b'
