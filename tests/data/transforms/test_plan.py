"""Planning edits: one resizing, regions that go along, media that are left alone."""
from qvlkit.data.transforms.edits import Crop, Flip, Resize
from qvlkit.data.transforms.plan import plan_edit
from qvlkit.structures import Box, Media, Sample, Turn


def sample():
    media = [Media('image', None, size=(100, 60), source_size=(100, 60)) for _ in range(2)]
    boxes = [Box((10, 10, 30, 20), 'a', index, 'pixels') for index in range(2)]
    return Sample('s', [Turn('user', media), Turn('assistant', ['at ', *boxes])])


def test_regions_of_the_edited_medium_alone_move():
    planned = plan_edit(sample(), 1, Flip())
    assert [item.coordinates for item in planned.turns[1].content[1:]] == [(10, 10, 30, 20), (70, 10, 90, 20)]
    assert [medium.edits for medium in planned.media()] == [(), (Flip(),)]


def test_two_resizings_in_a_row_are_one():
    planned = plan_edit(plan_edit(sample(), 0, Resize(50, 30)), 0, Resize(200, 120))
    assert planned.media()[0].edits == (Resize(200, 120),) and planned.media()[0].size == (200, 120)
    assert planned.turns[1].content[1].coordinates == (20, 20, 60, 40)
    planned = plan_edit(plan_edit(planned, 0, Flip()), 0, Resize(100, 60))
    assert planned.media()[0].edits == (Resize(200, 120), Flip(), Resize(100, 60))


def test_a_region_that_is_cut_off_leaves_the_sample():
    planned = plan_edit(sample(), 0, Crop(50, 0, 100, 60))
    assert planned.turns[1].content[0] == 'at ' and [item.media_index for item in planned.turns[1].content[1:]] == [1]
