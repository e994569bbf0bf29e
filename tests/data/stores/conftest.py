"""Records with pictures, as files and packed."""
import json
from io import BytesIO
from types import SimpleNamespace

import pytest
from PIL import Image


def encoded(colour='red', size=(8, 6), form='JPEG', **extra):
    buffer = BytesIO()
    Image.new('RGB', size, colour).save(buffer, form, **extra)
    return buffer.getvalue()


def talk(image=None, answer='A', **extra):
    turns = [{'from': 'human', 'value': '<image>Q é' if image else 'Q'}, {'from': 'gpt', 'value': answer}]
    return {**({'image': image} if image else {}), 'conversations': turns, **extra}


@pytest.fixture
def make():
    """Functions that make bytes of pictures and records."""
    return SimpleNamespace(encoded=encoded, talk=talk)


@pytest.fixture
def folder(tmp_path):
    """Two pictures and a file of four records, of which the last has no picture."""
    (tmp_path / 'a.jpg').write_bytes(encoded('red', (8, 6)))
    (tmp_path / 'b.png').write_bytes(encoded('blue', (10, 4), 'PNG'))
    records = [talk('a.jpg', '0'), talk('b.png', '1'), talk('a.jpg', '2'), talk(None, '3')]
    (tmp_path / 'chat.json').write_text(json.dumps(records))
    return tmp_path
