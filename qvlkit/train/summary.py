"""What a finished stage leaves behind: `summary.json` in its folder, by which it is known to be finished.

    {"stage": "sft", "trainer": "SFTTrainer", "steps": 300, "tokens": 307200, "seconds": 61.2, "trainable": 1234,
     "parameters": 2345, "loss": 0.41, "init": "model from work/tiny/long_context",
     "results": {"name": {"before": 0.1, "after": 0.8, "chance": 0.04, "unit": "%", "count": 100}}, "settings": {...}}
"""
import json
import os
from pathlib import Path

from qvlkit.config.load import redact

SUMMARY = 'summary.json'
NOT_COMPARED = ('hooks', 'loader.num_workers')  # settings that change nothing in the weights


def write_summary(trainer, *, init: str) -> dict:
    """Note that the trainer's stage is finished, and what came of it; whole or not at all.

    Args:
        trainer: After `fit`, its last step saved.
        init: Where its first weights came from, in words.
    """
    parameters = list(trainer.model.parameters())
    summary = dict(
        stage=trainer.stage, trainer=type(trainer).__name__, steps=trainer.step, tokens=int(trainer.num_tokens),
        seconds=round(trainer.seconds, 2), trainable=sum(p.numel() for group in trainer.optimizer.param_groups
                                                         for p in group['params']),
        parameters=sum(p.numel() for p in parameters), loss=trainer.recent_loss(), init=init, results=trainer.results,
        settings=stage_settings(trainer.config, trainer.stage))
    path = trainer.work_dir / SUMMARY
    temporary = path.with_name(f'{path.name}.tmp')
    temporary.write_text(json.dumps(summary, indent=1), encoding='utf-8')
    os.replace(temporary, path)
    return summary


def read_summary(stage_folder: Path) -> dict | None:
    """The summary of a finished stage; None if it is not finished."""
    path = Path(stage_folder) / SUMMARY
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def stage_settings(config: dict, name: str) -> dict:
    """'key.path' -> value of everything in the config that the stage's weights depend on."""
    stage = config['stages'][name]
    kept = {key: config[key] for key in ('tokenizer', 'seed', 'precision') if key in config}
    kept |= {'model': stage.get('model', config['model']), 'processor': stage.get('processor', config.get('processor'))}
    kept |= {key: value for key, value in stage.items() if key not in NOT_COMPARED}
    flat = json.loads(json.dumps(_flat(redact(kept))))
    return {key: value for key, value in flat.items() if key not in NOT_COMPARED}


def changed_settings(before: dict, now: dict) -> list[str]:
    """'key: old -> new' for each setting that differs."""
    return [f'{key}: {before.get(key)!r} -> {now.get(key)!r}' for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)]


def _flat(value: dict, path: str = '') -> dict:
    found = {}
    for key, item in value.items():
        here = f'{path}.{key}' if path else str(key)
        found |= _flat(item, here) if isinstance(item, dict) and item else {here: item}
    return found
