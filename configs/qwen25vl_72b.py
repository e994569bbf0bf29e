"""The whole recipe of Qwen2.5-VL-72B (73,410,777,344 parameters): six stages, from pairs to preferences.

Purpose:  contrastive, visual, multimodal and long-context pre-training, supervised fine-tuning, DPO; any stage alone.
Command:  python tools/train.py configs/qwen25vl_72b.py --stages sft --dry-run
              shapes, counts and costs of a stage, with no file at hand
          python tools/train.py configs/qwen25vl_72b.py --stages sft --load-from RELEASED_FOLDER
              --set tokenizer.path=RELEASED_FOLDER stages.sft.data.type=ConversationDataset
              stages.sft.data.path=CONVERSATIONS.json stages.sft.max_steps=STEPS
Hardware: the token budgets of the report, on 1,024 ranks. sft needs an estimated 2.4 TiB with rows of 32,768 tokens
    on one device (1,087 GiB of them weights, gradients and optimizer states): where one has less, a real run is
    refused, with the reason. Shorter rows (stages.sft.loader.row_length) need less. --dry-run: two CPU cores, 1 GiB,
    30 seconds.
Expected: the dry run prints 73,410,777,344 parameters and ends with 'dry run passed'.
"""
_base_ = ['_base_/models/qwen25vl_72b.py', '_base_/recipe.py']

# max_steps = tokens of the report / (row_length x accumulation x ranks); with other ranks, change it here.
_ranks = 1024  # that see different data

stages = dict(
    contrastive=dict(accumulation=1),
    visual=dict(init=dict(vision_encoder='contrastive', language_model='checkpoints/Qwen2.5-72B'),
                accumulation=2, max_steps=_base_._visual_tokens // (8192 * 2 * _ranks), optimizer=dict(lr=5e-5)),
    multimodal=dict(accumulation=2, max_steps=_base_._multimodal_tokens // (8192 * 2 * _ranks),
                    optimizer=dict(lr=2e-5)),
    long_context=dict(accumulation=1, max_steps=_base_._long_context_tokens // (32768 * 1 * _ranks),
                      optimizer=dict(lr=1e-5)),
    sft=dict(accumulation=1, max_steps=_base_._sft_tokens // (32768 * 1 * _ranks), optimizer=dict(lr=5e-6)),
    dpo=dict(accumulation=1, optimizer=dict(lr=2e-7)))

tokenizer = dict(type='HFTokenizer', path='checkpoints/Qwen2.5-VL-72B-Instruct')
work_dir = 'work/qwen25vl_72b'
