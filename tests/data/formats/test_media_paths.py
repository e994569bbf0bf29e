"""No annotation reads a file outside its media folder."""
import builtins
import os

import pytest

from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.data.transforms.load_media import MediaError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / 'root'
    (folder / 'sub').mkdir(parents=True)
    (folder / 'sub' / 'a.png').write_bytes(b'inside')
    for outside in (tmp_path / 'secret.png', tmp_path / 'rootevil.png'):
        outside.write_bytes(b'outside')
    (tmp_path / 'rootevil').mkdir()
    (tmp_path / 'rootevil' / 'x.png').write_bytes(b'outside')
    os.symlink(tmp_path / 'secret.png', folder / 'link.png')
    os.symlink(tmp_path / 'rootevil', folder / 'linked')
    os.symlink('sub/a.png', folder / 'inner.png')
    os.symlink('loop.png', folder / 'loop.png')
    return folder


def test_files_inside_are_found(root):
    expected = (root / 'sub' / 'a.png').resolve()
    for text in ('sub/a.png', './sub/../sub/a.png', str(root / 'sub' / 'a.png'), 'inner.png'):
        assert MediaRoot(root).resolve(text) == expected
    assert MediaRoot(root).resolve('data:image/png;base64,aGk=') == b'hi'


@pytest.mark.parametrize('text, kind', [
    ('../secret.png', 'path_refused'), ('sub/../../secret.png', 'path_refused'), ('/etc/passwd', 'path_refused'),
    ('../rootevil/x.png', 'path_refused'), ('link.png', 'path_refused'), ('linked/x.png', 'path_refused'),
    ('loop.png', None), ('sub/a.png\0.jpg', 'path_refused'), ('a' * 5000, 'path_refused'), ('b' * 300, 'path_refused'),
    ('%2e%2e/secret.png', 'missing_media'), ('SUB/A.PNG', 'missing_media'), ('sub', 'missing_media'),
    ('file:///etc/passwd', 'url_refused'), ('FILE:/etc/passwd', None), ('http://127.0.0.1/x.png', 'url_refused'),
    ('https://169.254.169.254/', 'url_refused'), ('', 'wrong_type'), (None, 'wrong_type'), (7, 'wrong_type'),
    ('data:image/png;base64,' + 'A' * (64 * 2 ** 20), 'too_large')])
def test_everything_else_is_refused_unopened(root, monkeypatch, text, kind):
    def refuse(*_, **__):
        raise AssertionError('opened')
    monkeypatch.setattr(builtins, 'open', refuse)
    with pytest.raises(MediaError) as caught:
        MediaRoot(root).resolve(text)
    assert kind is None or caught.value.kind == kind
    assert len(str(caught.value)) < 1000


def test_the_root_itself_may_be_a_link(root, tmp_path):
    os.symlink(root, tmp_path / 'alias')
    assert MediaRoot(tmp_path / 'alias').resolve('sub/a.png').name == 'a.png'
