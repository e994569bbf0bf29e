"""Every registry of qvlkit, and the rules they share.

A part registers itself with a decorator; a config names it by `type`:

    @MERGERS.register_module()
    class MyMerger(nn.Module): ...

    merger = dict(type='MyMerger', width=64)

Registries are closed: a name that nobody registered is an error that lists near names, and a dotted import path is
never followed (a config must not be able to run `type='subprocess.getoutput'`). The keys of a config dict are the
constructor's arguments; a key that it lacks is an error. Widths and geometry come from the builder as `injected`.
"""
import difflib
import importlib
import inspect
import pkgutil
import sys
from typing import Any

from mmengine.registry import Registry as MMEngineRegistry


class Registry(MMEngineRegistry):
    """MMEngine's registry, closed, which imports the files of its own folder on first use.

    Args:
        name: What an error calls a part of this kind, for example 'merger'.
        location: Package whose modules register parts, for example 'qvlkit.models.mergers'.
    """

    def __init__(self, name: str, location: str):
        super().__init__(name, scope='qvlkit')
        self._location = location
        self._importing = False

    def _import_parts(self) -> None:
        """Import the location once, and every module in it if it is a folder.

        A module that fails is imported again, and fails again, at the next question. One that asks this registry while
        it is imported finds what is registered so far.
        """
        if self._location is None or self._importing:
            return
        before = set(self.module_dict)
        self._importing = True
        try:
            package = importlib.import_module(self._location)
            for module in pkgutil.iter_modules(getattr(package, '__path__', [])):
                importlib.import_module(f'{self._location}.{module.name}')
            self._location = None
        finally:
            self._importing = False
            for name in self.module_dict.keys() - before:  # what a failed module registered would be in its own way
                if self.module_dict[name].__module__ not in sys.modules:
                    del self.module_dict[name]

    def names(self) -> list[str]:
        """The registered names, sorted."""
        self._import_parts()
        return sorted(self.module_dict)

    def get(self, key: str, *, config_key: str = '') -> type:
        """The part registered as `key`; ValueError with near names if there is none."""
        self._import_parts()
        part = self.module_dict.get(key) if isinstance(key, str) else None
        if part is None:
            where = f'{config_key}.type: ' if config_key else ''
            raise ValueError(f'{where}no {self.name} is registered as {key!r}{near_names(key, self.names())}; '
                             f'registered: {", ".join(self.names())}')
        return part

    def build(self, config: dict, /, *, config_key: str = '', **injected: Any) -> Any:
        """Call the constructor that `config['type']` names with the other keys of `config`.

        Args:
            config: `type` and constructor arguments. Not changed.
            config_key: Path of `config` in the whole config, for error messages.
            injected: Values that the builder knows (widths, geometry). The constructor receives those it asks for,
                unless the config states them itself.

        Raises:
            ValueError: `type` is absent or unknown, or a key is not an argument of the constructor.
        """
        where = config_key or self.name
        if not isinstance(config, dict) or 'type' not in config:
            raise ValueError(f"{where}: expected a dict with the key 'type', got {config!r}")
        part = self.get(config['type'], config_key=config_key)
        arguments = {key: value for key, value in config.items() if key != 'type'}
        accepted = constructor_keys(part)
        if accepted is not None:
            for key in arguments:
                if key not in accepted:
                    raise ValueError(f'{where}.{key}: {config["type"]} has no argument {key!r}'
                                     f'{near_names(key, accepted)}; it takes: {", ".join(accepted)}')
            injected = {key: value for key, value in injected.items() if key in accepted}
        for key, parameter in inspect.signature(part).parameters.items():
            required = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if required and key not in arguments and key not in injected:
                raise ValueError(f'{where}.{key}: {config["type"]} needs this argument and the config does not give it')
        return part(**{**injected, **arguments})


def constructor_keys(part: Any) -> list[str] | None:
    """Names of the arguments a constructor takes; None if it takes any keyword.

    A subclass that hands **arguments on takes what its base class takes, too.
    """
    keys: dict[str, None] = {}
    for constructor in [part, *getattr(part, '__mro__', ())[1:-1]]:
        parameters = inspect.signature(constructor).parameters.values()
        keys |= {parameter.name: None for parameter in parameters
                 if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return list(keys)
    return None


def near_names(name: Any, candidates: list[str]) -> str:
    """', did you mean ...?' for the nearest candidates, or nothing."""
    lowered = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.5)
    return f', did you mean {" or ".join(repr(lowered[key]) for key in near)}?' if near else ''


# Turn patches into features: the ViT.
VISION_ENCODERS = Registry('vision encoder', 'qvlkit.models.vision_encoders')
# Turn the features of a block of patches into language tokens.
MERGERS = Registry('merger', 'qvlkit.models.mergers')
# Give each token its position ids, and each id its rotation.
POSITION_ENCODINGS = Registry('position encoding', 'qvlkit.models.position_encodings')
# Turn embeddings into hidden states and logits.
LANGUAGE_MODELS = Registry('language model', 'qvlkit.models.language_models')
# Turn a caption into one vector: the text side of contrastive pre-training.
TEXT_TOWERS = Registry('text tower', 'qvlkit.models.text_towers')
# Turn the features of each picture into one vector: the picture side of contrastive pre-training.
POOLINGS = Registry('pooling', 'qvlkit.models.poolings')
# Compute attention for an AttentionPlan.
ATTENTION_BACKENDS = Registry('attention backend', 'qvlkit.models.layers.attention')
# Compare predictions with targets.
LOSSES = Registry('loss', 'qvlkit.losses')
# Give samples by index.
DATASETS = Registry('dataset', 'qvlkit.data.datasets')
# Give records and their media by index: files, LMDB, Parquet, tar.
STORES = Registry('store', 'qvlkit.data.stores')
# Decode frames of a video file, with their times.
VIDEO_READERS = Registry('video reader', 'qvlkit.data.video_readers')
# Sample -> Sample: one step between a dataset and numbers.
TRANSFORMS = Registry('transform', 'qvlkit.data.transforms')
# Text to token ids and back.
TOKENIZERS = Registry('tokenizer', 'qvlkit.data.tokenizers')
# Change the weights from their gradients.
OPTIMIZERS = Registry('optimizer', 'qvlkit.engine.optimizers')
# Change the learning rate over steps.
SCHEDULES = Registry('schedule', 'qvlkit.engine.schedules')
# Place the model on devices and add up over ranks.
STRATEGIES = Registry('strategy', 'qvlkit.engine.strategies')
# Turn a batch into a loss: one class for each training objective.
TRAINERS = Registry('trainer', 'qvlkit.train')
# Act at a named point of the loop: log, save, evaluate.
HOOKS = Registry('hook', 'qvlkit.train.hooks')
# Score a model's answers on held-out samples.
METRICS = Registry('metric', 'qvlkit.evaluation.metrics')

ALL = [VISION_ENCODERS, MERGERS, POSITION_ENCODINGS, LANGUAGE_MODELS, TEXT_TOWERS, POOLINGS, ATTENTION_BACKENDS,
       LOSSES, DATASETS, STORES, VIDEO_READERS, TRANSFORMS, TOKENIZERS, OPTIMIZERS, SCHEDULES, STRATEGIES, TRAINERS,
       HOOKS, METRICS]
