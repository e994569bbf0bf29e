"""What mergers share that make one token of each cell of s x s patches.

Shapes: M visual tokens, s cells' side in patches.
"""
import math

from torch import nn

from qvlkit.structures import Grid, VisionPlan


class CellMerger(nn.Module):
    """A grid of patches becomes a grid of cells, in the order in which the encoder has them.

    Args:
        merge_size: s, the side of a cell in patches.
    """

    def __init__(self, merge_size: int):
        super().__init__()
        self.merge_size = merge_size

    def token_grid(self, grid: Grid) -> Grid:
        """Frame groups, rows and columns of visual tokens of a picture of this grid, in patches."""
        t, rows, columns = grid
        return t, rows // self.merge_size, columns // self.merge_size

    def num_tokens(self, grid: Grid) -> int:
        """Visual tokens of a picture of this grid, in patches."""
        return math.prod(self.token_grid(grid))

    def arrange(self, plan: VisionPlan) -> VisionPlan:
        """The encoder's plan as it is: its cells are the tokens."""
        return plan
