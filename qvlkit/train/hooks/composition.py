"""What the stage's data are made of, in `composition.json` of its folder, before the first step."""
import logging

from qvlkit.planning.composition import drawn_composition
from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook

logger = logging.getLogger('qvlkit')


@HOOKS.register_module()
class CompositionHook(Hook):
    """Counts kinds, subsets, languages, turns and pictures of the samples that are drawn first; see
    planning/composition.py. Reads headers and text, on the first rank alone; a resume reads nothing.

    Args:
        samples: How many to count.
    """
    main_only = True

    def __init__(self, samples: int = 2000):
        self.samples = _check(samples)

    def before_train(self, trainer) -> None:
        if trainer.step:
            return
        loader = trainer.loader
        found = drawn_composition(loader.mixture, loader.processor, samples=self.samples, seed=loader.settings['seed'])
        path = found.write(trainer.work_dir)
        shares = ', '.join(f'{100 * by_sample:.0f} % {value} ({100 * by_token:.0f} % of the tokens)'
                           for value, (by_sample, by_token) in found.shares('kind').items())
        logger.info('data of %s, %d samples drawn: %s; see %s', trainer.stage, found.samples, shares, path)


def _check(samples: int) -> int:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f'CompositionHook.samples: expected a number of at least 1, got {samples!r}')
    return samples
