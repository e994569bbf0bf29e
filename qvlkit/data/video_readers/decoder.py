"""placeholder until the merge"""


class VideoDecoder:
    """placeholder"""

    def __init__(self, readers, deadline):
        pass
