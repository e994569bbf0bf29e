"""The six stages of Qwen2.5-VL's recipe with a few million parameters, on data that the run makes itself.

Purpose:   the newcomer's first command, an end-to-end test, and the proxy on which ablations start.
Command:   python tools/train.py configs/qwen25vl_tiny.py
Hardware:  two CPU cores, 2 GiB of memory, 7 to 8 minutes. Downloads nothing.
Expected:  work/qwen25vl_tiny/report.html shows what each stage did to held-out numbers. The worst of seeds 0 to 2, with
           chance in brackets: a picture's class among captions 88 % (4); loss on captions 6.4 -> 2.7; on documents
           6.2 -> 0.14; facts 1,100 tokens back 89 % (13), pictures 44 % (9), without them 15 % and 5 %; then questions:
           name 76 % (9), count 56 % (17), locate 32 % (16), read 96 % (11), photo subject 89 % (13); preferred
           answers 100 % (50), of which the model before preferred 49 to 52 %. What it took: docs/lab_notes.md.
"""

model = dict(
    vision_encoder=dict(type='Qwen25ViT', width=128, depth=4, num_heads=4, feed_forward_width=344, patch_size=14,
                        temporal_patch_size=2, window_size=56, full_attention_blocks=[1, 3]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[4, 6, 6], tokens_per_second=2, theta=10000.0),
    language_model=dict(type='Qwen2Decoder', width=128, depth=4, num_heads=4, num_kv_heads=2, feed_forward_width=352,
                        tie_embeddings=True),
    attention='sdpa')

tokenizer = dict(type='ByteLevelBPE', vocab_size=512)
processor = dict(min_pixels=56 * 56, max_pixels=140 * 140)

_tasks = ['name', 'count', 'locate', 'read']


def _captions(tasks, size, split, seed=0):
    """Drawn scenes and words, and crops of photos, each with what it shows as its text."""
    drawn = dict(type='PictureTasks', size=size, split=split, seed=seed, tasks=tasks, questions_per_picture=1)
    photos = dict(type='PhotoQuestions', size=size // 8, split=split, seed=seed, tasks=['subject'])
    return dict(type='Mixture', parts=dict(
        drawn=dict(dataset=dict(type='AsDocuments', dataset=drawn, questions=False), weight=6.0),
        photos=dict(dataset=dict(type='AsDocuments', dataset=photos, questions=False), weight=1.0)))


def _hooks(**more):
    return dict(console=dict(type='ConsoleHook', interval=20), jsonl=dict(type='JSONLHook', interval=20),
                sources=dict(type='SourcesHook', interval=100),
                checkpoint=dict(type='CheckpointHook', interval=1000, keep=1), **more)


def _questions():
    return dict(type='EvaluationHook', max_new_tokens=28, dataset=dict(type='Mixture', parts=dict(
        pictures=dict(dataset=dict(type='PictureTasks', size=300, split='held_out')),
        photos=dict(dataset=dict(type='PhotoQuestions', size=75, tasks=['subject'], split='held_out')))))


# Facts or a picture, 1,100 to 1,700 tokens that say nothing of them, and a question: rows of earlier stages end before.
_long = dict(type='LongTexts', sentences=[180, 260], pictures=0.5)
_rows = dict(row_length=1024, window=256, num_workers=1)
_optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05, betas=[0.9, 0.95])
_schedule = dict(type='WarmupCosine', warmup_ratio=0.05, final_ratio=0.02)

stages = dict(
    contrastive=dict(
        trainer=dict(type='ContrastiveTrainer', loss=dict(type='InfoNCE')), max_steps=160, max_grad_norm=1.0,
        towers=dict(text_tower=dict(type='TextTransformer', width=96, depth=2, num_heads=3),
                    pooling=dict(type='AttentionPooling'), width=96),
        data=_captions(['name', 'read', 'list'], 20000, 'train', 2),
        loader=dict(_rows, window=512),
        optimizer=_optimizer, schedule=_schedule,
        hooks=_hooks(zero_shot=dict(type='ZeroShotHook', dataset=_captions(['name', 'read'], 240, 'held_out')))),
    visual=dict(
        trainer=dict(type='PretrainTrainer'), max_steps=150, max_grad_norm=1.0,
        init=dict(vision_encoder='contrastive'), parts=dict(language_model=dict(trainable=False)),
        data=_captions(['name', 'read', 'list'], 20000, 'train'),
        loader=_rows,
        optimizer=_optimizer, schedule=_schedule,
        hooks=_hooks(held_out=dict(type='HeldOutLossHook', name='caption loss', other_pictures=True,
                                   dataset=_captions(['name', 'read', 'list'], 120, 'held_out')))),
    multimodal=dict(
        trainer=dict(type='PretrainTrainer'), max_steps=700, max_grad_norm=1.0,
        data=dict(type='Mixture', parts=dict(
            captions=dict(dataset=_captions(['name', 'read', 'list'], 20000, 'train', 1), weight=1.0),
            documents=dict(weight=6.0, dataset=dict(type='AsDocuments', dataset=dict(
                type='PictureTasks', size=40000, tasks=_tasks, questions_per_picture=1))),
            questions=dict(weight=2.0, dataset=dict(type='PictureTasks', size=20000, tasks=['name'], seed=1)),
            text=dict(weight=4.0, dataset=dict(type='LongTexts', size=20000, sentences=[0, 8], pictures=0.3)))),
        loader=_rows,
        optimizer=_optimizer, schedule=_schedule,
        hooks=_hooks(held_out=dict(type='HeldOutLossHook', name='document loss', other_pictures=True, dataset=dict(
            type='AsDocuments', dataset=dict(type='PictureTasks', size=120, split='held_out'))))),
    long_context=dict(
        trainer=dict(type='PretrainTrainer'), max_steps=200, max_grad_norm=1.0,
        data=dict(type='Mixture', parts=dict(
            long=dict(weight=1.0, dataset=dict(_long, size=20000, seed=1)),
            text=dict(weight=3.0, dataset=dict(type='LongTexts', size=20000, sentences=[0, 120], seed=2,
                                                pictures=0.4)),
            documents=dict(weight=2.0, dataset=dict(type='AsDocuments', dataset=dict(
                type='PictureTasks', size=40000, tasks=_tasks, questions_per_picture=1, seed=2))))),
        loader=dict(_rows, row_length=2048, window=64),
        optimizer=_optimizer, schedule=_schedule,
        hooks=_hooks(evaluation=dict(type='EvaluationHook', max_new_tokens=8, batch_size=8, dataset=dict(
            type='Mixture', parts=dict(
                facts=dict(dataset=dict(_long, size=80, split='held_out', pictures=0.0)),
                pictures=dict(dataset=dict(_long, size=80, split='held_out', pictures=1.0)),
                no_facts=dict(dataset=dict(_long, size=160, split='held_out', pictures=0.0, evidence=False)),
                no_pictures=dict(dataset=dict(_long, size=80, split='held_out', pictures=1.0, evidence=False))))))),
    sft=dict(
        trainer=dict(type='SFTTrainer'), max_steps=300, max_grad_norm=1.0,
        parts=dict(vision_encoder=dict(trainable=False)),
        data=dict(type='Mixture', parts=dict(
            picture_tasks=dict(dataset=dict(type='PictureTasks', size=40000, questions_per_picture=1, seed=3),
                               weight=12.0),
            lists=dict(dataset=dict(type='PictureTasks', size=20000, tasks=['list'], seed=3), weight=2.0),
            photos=dict(dataset=dict(type='PhotoQuestions', size=4000, tasks=['subject']), weight=1.0),
            text=dict(dataset=dict(type='LongTexts', size=20000, sentences=[3, 12], seed=3, pictures=0.0),
                      weight=1.0))),
        loader=_rows,
        optimizer=_optimizer, schedule=_schedule,
        hooks=_hooks(composition=dict(type='CompositionHook', samples=500), evaluation=_questions())),
    dpo=dict(
        trainer=dict(type='DPOTrainer', loss=dict(type='DPOLoss', beta=0.1)), max_steps=120, max_grad_norm=1.0,
        parts=dict(vision_encoder=dict(trainable=False)),
        data=dict(type='PicturePairs', size=4000),
        loader=_rows,
        optimizer=dict(_optimizer, weight_decay=0.0), schedule=_schedule,
        hooks=_hooks(preference=dict(type='PreferenceHook', dataset=dict(
            type='PicturePairs', size=200, split='held_out')))))

threads = 1
run = ['contrastive', 'visual', 'multimodal', 'long_context', 'sft', 'dpo']
seed = 0
work_dir = 'work/qwen25vl_tiny'
