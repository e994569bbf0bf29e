"""The keys that a config may have where no constructor decides them: the one place that lists them.

Below a dict with `type` the keys are the arguments of the constructor that `type` names (see parts.py).
"""
from collections.abc import Collection

TOP_LEVEL = ('model', 'tokenizer', 'processor', 'stages', 'run', 'seed', 'work_dir', 'precision', 'plugins',
             'threads', 'strategy')
STAGE = ('trainer', 'data', 'loader', 'max_steps', 'accumulation', 'max_grad_norm', 'parts', 'optimizer', 'schedule',
         'hooks', 'model', 'processor', 'init', 'towers', 'lora', 'ema', 'guard')
MODEL = ('vision_encoder', 'merger', 'position_encoding', 'language_model', 'attention', 'image_mean',
         'image_std')
LOADER = ('row_length', 'window', 'num_workers', 'shuffle', 'on_error', 'max_bad_share', 'max_bad_in_a_row')
# The two towers of the contrastive stage, beside the model's vision encoder.
TOWERS = ('text_tower', 'pooling', 'width', 'temperature', 'bias')
PART = ('trainable', 'lr', 'weight_decay', 'layer_decay')
# Parts of the model that a stage may freeze or give a learning rate.
PARTS = ('vision_encoder', 'merger', 'language_model', 'pooling', 'text_tower', 'temperature')
# Low-rank adapters of some parts, and the moving average of the weights.
LORA = ('parts', 'rank', 'alpha', 'dropout', 'target_modules', 'quantize')
EMA = ('decay',)
# Which steps are not made: train/guard.py.
GUARD = ('enabled', 'max_skips_in_a_row', 'spike_factor', 'spike_window', 'max_rollbacks')
# A part of a mixture of datasets, and what it may set for its own samples.
MIXTURE_PART = ('dataset', 'weight', 'order', 'epochs', 'exhausted', 'oversize', 'limits')
LIMITS = ('min_pixels', 'max_pixels', 'video_min_pixels', 'video_max_pixels', 'video_total_pixels', 'fps', 'min_frames',
          'max_frames')
PROCESSOR = (*LIMITS, 'transforms', 'add_vision_id', 'region_style', 'video_readers', 'video_deadline')
# Dicts whose keys are names that the user makes up; an entry may be removed by setting it to null. So are the parts of
# a mixture, but not those of the model.
NAMED = ('hooks', 'metrics', 'datasets', 'benchmarks', 'transforms')
# What a run cannot do without.
REQUIRED = ('model', 'tokenizer', 'stages', 'run', 'work_dir')
REQUIRED_OF_STAGE = ('trainer', 'data', 'loader', 'max_steps', 'optimizer', 'schedule')
# Keys that may be null.
NULLABLE = ('max_grad_norm', 'threads', 'init', 'lora', 'ema', 'guard', 'spike_factor')


def known_keys(path: str) -> Collection[str] | None:
    """Keys that a dict without `type` at `path` may have; None where the user makes them up or nobody lists them."""
    keys = path.split('.') if path else []
    if keys[:1] == ['stages'] and len(keys) > 2:
        keys = keys[2:]
    elif keys[:1] == ['stages']:
        return STAGE if len(keys) == 2 else None
    if not keys:
        return TOP_LEVEL
    if keys[0] == 'parts':
        return PARTS if len(keys) == 1 else PART
    if keys[-2:-1] == ['parts']:
        return MIXTURE_PART
    if keys[-3:-2] == ['parts'] and keys[-1] == 'limits':
        return LIMITS
    if len(keys) == 1:
        return {'model': MODEL, 'processor': PROCESSOR, 'loader': LOADER, 'towers': TOWERS, 'init': PARTS,
                'lora': LORA, 'ema': EMA, 'guard': GUARD}.get(keys[0])
    return None
