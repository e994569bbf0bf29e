"""What every M-RoPE kind shares: the walk that gives ids, and frequencies dealt to axes in sections.

Source: Qwen2-VL, arXiv 2409.12191, section 2.1 (M-RoPE). Shapes: A axes, T tokens of one sample, d head width.
"""
from collections.abc import Callable, Sequence

import numpy as np
import torch

from qvlkit.models.layers.rotary import inverse_frequencies
from qvlkit.structures import Layout, TextSpan, VisionSpan


def mrope_ids(layout: Layout, frame_ids: Callable[[VisionSpan], np.ndarray]) -> torch.Tensor:
    """(3, T) int64: time, height, width of every token of one sample.

    Text counts on along all axes at once. A picture's tokens start where the text stopped, s, and take s + frame id,
    s + row, s + column; the text after it continues behind the largest id. For the layout text 2, picture of 1 x 2 x 2
    cells, text 1: time 0 1 2 2 2 2 4, height 0 1 2 2 3 3 4, width 0 1 2 3 2 3 4.
    """
    ids = np.empty((3, sum(span.length for span in layout)), dtype=np.int64)
    token, start = 0, 0
    for span in layout:
        end = token + span.length
        if isinstance(span, TextSpan):
            ids[:, token:end] = np.arange(start, start + span.length)
            start += span.length
        else:
            t, rows, columns = span.grid
            frames = frame_ids(span)
            time, height, width = (axis[token:end].reshape(t, rows, columns) for axis in ids)  # views
            time[:] = (frames + start)[:, None, None]
            height[:] = np.arange(start, start + rows)[:, None]
            width[:] = np.arange(start, start + columns)
            start += max(int(frames[-1]), rows - 1, columns - 1) + 1
        token = end
    return torch.from_numpy(ids)


def sectioned_rotary(position_ids: torch.Tensor, sections: Sequence[int],
                     theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, T) ids -> cos, sin (T, d/2) float32, where the first sections[0] frequencies turn with axis 0, and so on."""
    frequencies = inverse_frequencies(2 * sum(sections), theta, position_ids.device)
    shares = frequencies.split(list(sections))
    angles = torch.cat([ids[:, None].float() * share for ids, share in zip(position_ids, shares)], dim=1)
    return angles.cos(), angles.sin()


def check_sections(sections: Sequence[int], head_dim: int) -> tuple[int, ...]:
    """The sections as a tuple; ValueError if they do not fill half of the head."""
    if sum(sections) != head_dim // 2:
        raise ValueError(f'model.position_encoding.sections: {list(sections)} sums to {sum(sections)}, but half of the '
                         f'head width of model.language_model is {head_dim // 2}')
    return tuple(sections)
