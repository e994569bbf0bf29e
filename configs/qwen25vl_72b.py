"""Supervised fine-tuning of Qwen2.5-VL-72B (73,410,777,344 parameters) on your own conversations.

Purpose:  train the merger and the language model on a LLaVA, ShareGPT or OpenAI conversation file.
Command:  python tools/train.py configs/qwen25vl_72b.py --dry-run
              shapes, counts and costs, with no file at hand
          python tools/train.py configs/qwen25vl_72b.py --load-from RELEASED_FOLDER
              --set tokenizer.path=RELEASED_FOLDER stages.sft.data.path=CONVERSATIONS.json
Hardware: an estimated 1.5 TiB, more than any one device has: a real run on one is refused, with the reason.
    --dry-run: two CPU cores, 1 GiB, 30 seconds.
Expected: the dry run prints 73,410,777,344 parameters and ends with 'dry run passed'.
"""
_base_ = ['_base_/models/qwen25vl_72b.py', '_base_/stages/sft.py']

tokenizer = dict(type='HFTokenizer', path='checkpoints/Qwen2.5-VL-72B-Instruct')
work_dir = 'work/qwen25vl_72b'
