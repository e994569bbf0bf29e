"""The one resize function against the released processor's sizes."""
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qvlkit.data.transforms.resize import resize_image, smart_resize, video_frame_limits

WIDE, NARROW = (3136, 12845056), (256 * 784, 1280 * 784)


@pytest.mark.parametrize('size, limits, expected', [
    ((1080, 1920), WIDE, (1092, 1932)), ((1080, 1920), NARROW, (728, 1316)),
    ((100, 100), WIDE, (112, 112)), ((100, 100), NARROW, (448, 448)),
    ((20, 500), WIDE, (28, 504)), ((20, 500), NARROW, (112, 2240)),
    ((14, 14), WIDE, (56, 56)), ((14, 14), NARROW, (448, 448)),
    ((3000, 4000), WIDE, (2996, 4004)), ((3000, 4000), NARROW, (840, 1148)),
    ((8000, 6000), WIDE, (4116, 3080)), ((8000, 6000), NARROW, (1148, 840)),
    ((42, 70), WIDE, (56, 56)), ((42, 70), NARROW, (364, 588)),
    ((428, 640), WIDE, (420, 644)), ((428, 640), NARROW, (420, 644)),
])
def test_golden_sizes(size, limits, expected):
    assert smart_resize(*size, factor=28, min_pixels=limits[0], max_pixels=limits[1]) == expected


def test_refuses_extreme_shapes_and_names_the_value():
    assert smart_resize(1, 200, factor=28, min_pixels=3136, max_pixels=WIDE[1])[0] == 28
    with pytest.raises(ValueError, match=r'aspect ratio 201 \(201 x 1 pixels\) is above 200'):
        smart_resize(1, 201, factor=28, min_pixels=3136, max_pixels=WIDE[1])
    with pytest.raises(ValueError, match='at least 1 x 1'):
        smart_resize(0, 5, factor=28, min_pixels=3136, max_pixels=WIDE[1])


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([16, 28, 56]))
def test_multiples_within_the_limits(height, width, factor):
    if max(height, width) > 200 * min(height, width):
        return
    low, high = 4 * factor ** 2, 1024 * factor ** 2
    rows, columns = smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
    assert rows % factor == columns % factor == 0
    assert rows * columns >= low
    assert rows * columns <= high or min(rows, columns) == factor  # a thin picture cannot get thinner


def test_resize_keeps_a_fitting_picture_as_it_is():
    image = Image.new('RGB', (56, 84))
    assert resize_image(image, (84, 56)) is image
    assert resize_image(image, (28, 112)).size == (112, 28)


def test_long_videos_share_their_budget():
    def limits(frames):
        return video_frame_limits(frames, min_pixels=100_352, max_pixels=602_112, total_pixels=24576 * 784,
                                  temporal_patch_size=2)
    assert limits(4) == (100_352, 602_112)
    assert limits(100) == (100_352, 24576 * 784 // 50)
    assert limits(768) == (100_352, int(100_352 * 1.05))
