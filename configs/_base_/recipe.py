"""The whole recipe in order: what the sizes share. They add the model, first weights, batches and learning rates."""
_base_ = ['stages/contrastive.py', 'stages/long_context.py', 'stages/sft.py', 'stages/dpo.py']

_hooks = dict(console=dict(type='ConsoleHook', interval=10), jsonl=dict(type='JSONLHook', interval=10),
              tensorboard=dict(type='TensorBoardHook', interval=10), sources=dict(type='SourcesHook', interval=100),
              checkpoint=dict(type='CheckpointHook', interval=500, keep=2))
_composition = dict(_hooks, composition=dict(type='CompositionHook', samples=2000))

stages = dict(
    contrastive=dict(_base_._contrastive, hooks=_hooks),
    visual=dict(_base_._visual, hooks=_hooks),  # long_context.py inherits multimodal.py, and that visual.py
    multimodal=dict(_base_._multimodal, hooks=_hooks),
    long_context=dict(_base_._long_context, hooks=_hooks),
    sft=dict(_base_._sft, hooks=_composition),
    dpo=dict(_base_._dpo, hooks=_hooks))
run = ['contrastive', 'visual', 'multimodal', 'long_context', 'sft', 'dpo']
seed = 0
precision = 'auto'
plugins = []
