"""qvlkit: train Qwen2.5-VL, and every variation of it that a config can spell.

    import qvlkit
    model, processor = qvlkit.load('checkpoint or Hugging Face folder')
    answer = qvlkit.generate(model, processor, messages, max_new_tokens=64)

Importing this package imports nothing else: the public names are fetched when they are first asked for.
"""
import importlib

__version__ = '0.1.0'

_HOMES = {'load': 'qvlkit.convert.load', 'save_pretrained': 'qvlkit.convert.huggingface',
          'generate': 'qvlkit.generation.decoding'}
__all__ = ['__version__', *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
