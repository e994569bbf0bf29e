"""Planning an edit: what every transform that changes a picture's geometry does, in one place."""
from qvlkit.data.transforms.edits import Edit, Resize
from qvlkit.data.transforms.regions import move
from qvlkit.structures import Region, Sample


def plan_edit(sample: Sample, media_index: int, edit: Edit) -> Sample:
    """Note `edit` on one medium of the sample, and move the regions on it, which are in the space 'pixels'.

    A region that the edit cuts off leaves the sample with it. Two resizings in a row become one: the picture is scaled
    once.
    """
    medium = sample.media()[media_index]
    before = medium.size
    for turn in sample.turns:
        moved = [move(item, edit, before) if isinstance(item, Region) and item.media_index == media_index else item
                 for item in turn.content]
        turn.content = [item for item in moved if item is not None]
    medium.size = edit.size(before)
    kept = medium.edits[:-1] if medium.edits and isinstance(edit, Resize) and isinstance(
        medium.edits[-1], Resize) else medium.edits
    medium.edits = (*kept, edit)
    return sample
