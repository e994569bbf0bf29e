"""Names and shapes of tensors: Hugging Face's two spellings of Qwen2.5-VL, and ours.

    released files                 transformers >= 4.52                    here
    visual.patch_embed.proj.weight model.visual.patch_embed.proj.weight    vision_encoder.patch_embed.proj.weight
    visual.blocks.0.norm1.weight   model.visual.blocks.0.norm1.weight      vision_encoder.blocks.0.norm1.weight
    visual.merger.ln_q.weight      model.visual.merger.ln_q.weight         merger.ln_q.weight
    model.embed_tokens.weight      model.language_model.embed_tokens...    language_model.embed_tokens.weight
    model.layers.0...              model.language_model.layers.0...        language_model.layers.0...
    lm_head.weight                 lm_head.weight                          language_model.lm_head.weight

Source: state dicts of transformers 4.49 to 5.24. Files are written with the released names, which every version reads.
Shape letters: D vision width, C colour channels, F frames in a patch, P patch side.
"""
from collections.abc import Sequence

from qvlkit.structures import VisionGeometry

PATCH_EMBEDDING = 'vision_encoder.patch_embed.proj.weight'  # (D, C*F*P*P) here, (D, C, F, P, P) there
EMBEDDING, HEAD = 'language_model.embed_tokens.weight', 'language_model.lm_head.weight'

# Longer prefixes first: the first that fits decides.
_TO_RELEASED = [('model.visual.', 'visual.'), ('model.language_model.', 'model.')]
_RELEASED_TO_OURS = [('visual.merger.', 'merger.'), ('visual.', 'vision_encoder.'), ('model.', 'language_model.'),
                     ('lm_head.', 'language_model.lm_head.')]
_OURS_TO_RELEASED = [('language_model.lm_head.', 'lm_head.'), ('merger.', 'visual.merger.'),
                     ('vision_encoder.', 'visual.'), ('language_model.', 'model.')]


def embedding_name(names: Sequence[str]) -> str | None:
    """The embedding among names of any spelling, ours or HFDecoder's; None if there is none."""
    spellings = (EMBEDDING, 'language_model.model.embed_tokens.weight', 'model.embed_tokens.weight',
                 'model.language_model.embed_tokens.weight')
    return next((name for name in spellings if name in names), None)


def our_name(name: str) -> str | None:
    """Our name of a Hugging Face tensor, in either spelling; None if it is not of this architecture."""
    return _replace(_replace(name, _TO_RELEASED) or name, _RELEASED_TO_OURS)


def released_name(name: str) -> str:
    """The released name of one of our tensors.

    Raises:
        ValueError: The tensor belongs to a part that the released architecture lacks.
    """
    released = _replace(name, _OURS_TO_RELEASED)
    if released is None:
        raise ValueError(f'tensor {name!r} has no place in the Hugging Face architecture; expected a name that starts '
                         f'with {", ".join(ours for ours, _ in _OURS_TO_RELEASED[1:])}')
    return released


def map_names(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Hugging Face names -> ({our name: that name}, names that are not of this architecture).

    Raises:
        ValueError: A tensor is there in both spellings.
    """
    mapped: dict[str, str] = {}
    unknown = []
    for name in names:
        ours = our_name(name)
        if ours is None:
            unknown.append(name)
        elif ours in mapped:
            raise ValueError(f'tensors {mapped[ours]!r} and {name!r} are two spellings of one')
        else:
            mapped[ours] = name
    return mapped, unknown


def released_shape(name: str, shape: Sequence[int], geometry: VisionGeometry) -> tuple[int, ...]:
    """Shape in a Hugging Face file of our tensor `name` of `shape`."""
    if name != PATCH_EMBEDDING:
        return tuple(shape)
    side = geometry.patch_size
    return shape[0], geometry.in_channels, geometry.temporal_patch_size, side, side


def _replace(name: str, prefixes: list[tuple[str, str]]) -> str | None:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name[len(old):]
    return None
