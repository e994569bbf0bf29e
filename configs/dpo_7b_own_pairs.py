"""Direct preference optimization of a released Qwen2.5-VL-7B (8,292,166,656 parameters) on your own pairs of answers.

Purpose:  make the better of two answers likelier, each pair seen once, held to the model that it starts from.
Command:  python tools/train.py configs/dpo_7b_own_pairs.py --load-from RELEASED_FOLDER
              --set tokenizer.path=RELEASED_FOLDER stages.dpo.data.path=PAIRS.json stages.dpo.max_steps=STEPS
          STEPS: pairs / pairs in a step (a row holds as many as fit, accumulation=8 rows are a step)
Hardware: an estimated 217 GiB with rows of 8,192 tokens: 188 as for fine-tuning, and 29 for the frozen copy that is the
    reference; stages.dpo.trainer.reference=stored does without the copy.
Expected: log.jsonl in work/dpo_7b_own_pairs/dpo begins with a loss of 0.69, log 2; the share of pairs whose better
    answer is the likelier one rises.
"""
_base_ = 'qwen25vl_7b.py'

stages = dict(dpo=dict(
    data=dict(_delete_=True, type='ConversationDataset', path='data/pairs.json', format='preference'),
    loader=dict(num_workers=2), accumulation=8))

run = ['dpo']
work_dir = 'work/dpo_7b_own_pairs'
