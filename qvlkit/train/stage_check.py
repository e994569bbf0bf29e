"""Do the pieces that a stage names belong together? Asked of the config alone, before anything is built."""
from qvlkit.registry import HOOKS, TRAINERS, near_names
from qvlkit.train.guard import build_guard


def check_stage(config: dict, name: str) -> None:
    """Refuse towers without the trainer for them, or the reverse, hooks that do not fit the trainer, and a wrong guard.

    Args:
        config: Resolved.
        name: Of the stage.

    Raises:
        ValueError: Names the key, what does not fit it, and what would.
    """
    if name not in config['stages']:
        raise ValueError(f'run: no stage is called {name!r}{near_names(name, list(config["stages"]))}; stages: '
                         f'{", ".join(config["stages"])}')
    stage, key = config['stages'][name], f'stages.{name}'
    kind = stage['trainer'].get('type')
    trainer = TRAINERS.get(kind, config_key=f'{key}.trainer')
    if stage.get('towers') and not trainer.two_towers:
        fitting = [other for other in TRAINERS.names() if getattr(TRAINERS.get(other), 'two_towers', False)]
        raise ValueError(f'{key}.towers: {kind} ({key}.trainer.type) trains a whole model and no two towers; trainers '
                         f'of two towers: {", ".join(fitting)}')
    if trainer.two_towers and not stage.get('towers'):
        raise ValueError(f'{key}.towers: the stage names no towers, and {kind} ({key}.trainer.type) compares two; give '
                         'it towers = dict(text_tower=dict(type=...), pooling=dict(type=...), width=...)')
    for hook_name, hook in (stage.get('hooks') or {}).items():
        if hook:
            hook_key = f'{key}.hooks.{hook_name}'
            reason = HOOKS.get(hook.get('type'), config_key=hook_key).misfit(trainer)
            if reason:
                raise ValueError(f'{hook_key}: {hook["type"]} {reason}, but {key}.trainer.type is {kind}')
    build_guard(stage.get('guard', {}), f'{key}.guard')
