"""TorchCodec reader, where the package and FFmpeg's libraries are there; test_contract.py holds it, too."""
import sys

import pytest

from qvlkit.data.video_readers import torchcodec
from qvlkit.data.video_readers.torchcodec import TorchCodecReader


def test_absent_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchcodec.decoders', None)
    with pytest.raises(ValueError, match='pip install torchcodec') as error:
        TorchCodecReader(str(tmp_path / 'a.mp4'))
    assert error.value.kind == 'no_video_reader'


def test_times_of_a_steady_stream_cost_few_frames(tmp_path, clips, monkeypatch):
    pytest.importorskip('torchcodec')
    reader = TorchCodecReader(str(clips.write(tmp_path / 'a.mp4', 400, 25)))
    asked, spans = [], reader._spans
    monkeypatch.setattr(reader, '_spans', lambda indices: asked.extend(indices) or spans(indices))
    assert reader.info().timestamps[-1] == pytest.approx(399 / 25)
    assert len(asked) == torchcodec.PROBES
