"""Paths in annotations: one bad row each, counted by kind, and nothing outside the media folder is ever opened.

The rows are read in a child process whose audit hook records every file that is opened, by Python or by a library.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CODE = '''
import json, sys
sys.path.insert(0, sys.argv[3])
from PIL import Image
Image.init()
from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.transforms.load_media import load_image
from qvlkit.structures import SampleError
opened, connected = [], []
def hook(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))
    elif event.startswith(("socket.", "subprocess.", "urllib.")):
        connected.append(event)
sys.addaudithook(hook)
data = ConversationDataset(sys.argv[1], media_root=sys.argv[2])
kinds = []
for index in range(len(data)):
    try:
        kinds.append(str(load_image(data[index].media()[0].source).size))
    except SampleError as error:
        assert str(error).startswith("rows.jsonl[%d]: " % index) and len(str(error)) < 1500, error
        kinds.append(error.kind)
leaks = len(opened)
load_image(sys.argv[4])  # the control: the hook sees a picture outside
print(json.dumps([kinds, opened[:leaks], opened[leaks:], connected]))
'''
# what a row names -> kind of its error, or the size of a picture that may be read
ROWS = {
    'in/a.png': '(8, 6)', './in/../in/a.png': '(8, 6)', 'inner-link.png': '(8, 6)',
    '../../etc/passwd': 'path_refused', '../secret.png': 'path_refused', 'in/../../secret.png': 'path_refused',
    '/etc/passwd': 'path_refused', '/proc/self/environ': 'path_refused', 'link.png': 'path_refused',
    'linked/x.png': 'path_refused', 'link-to-link.png': 'path_refused', '../rootevil/x.png': 'path_refused',
    'in/a.png\0.jpg': 'path_refused', '\0': 'path_refused', '%2e%2e/secret.png': 'missing_media',
    '%2e%2e%2fsecret.png': 'missing_media', '..%c0%afsecret.png': 'missing_media', '..\\secret.png': 'missing_media',
    'a' * 5000: 'path_refused', 'b' * 300: 'path_refused', '../' * 1000 + 'etc/passwd': 'path_refused',
    'IN/A.PNG': 'missing_media', 'in': 'missing_media', 'fifo': 'missing_media', '~/secret.png': 'missing_media',
    'file:///etc/passwd': 'url_refused', 'FILE:///etc/passwd': 'url_refused', 'file:/etc/passwd': 'url_refused',
    'http://127.0.0.1/a.png': 'url_refused', '\u202egnp.terces/..': 'missing_media', '': 'wrong_type',
    'data:,hello': 'bad_image'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A media folder with links that lead out, and pictures outside that must stay unread."""
    base = tmp_path_factory.mktemp('policy')
    root = base / 'root'
    (root / 'in').mkdir(parents=True)
    (base / 'rootevil').mkdir()
    picture = Image.new('RGB', (8, 6))
    for path in (root / 'in' / 'a.png', base / 'secret.png', base / 'rootevil' / 'x.png'):
        picture.save(path)
    os.symlink(base / 'secret.png', root / 'link.png')
    os.symlink('link.png', root / 'link-to-link.png')
    os.symlink(base / 'rootevil', root / 'linked')
    os.symlink('in/a.png', root / 'inner-link.png')
    os.mkfifo(root / 'fifo')  # opening it would block for ever
    return base


def test_each_row_has_its_kind_and_nothing_outside_is_opened(folder):
    path = folder / 'rows.jsonl'
    path.write_text('\n'.join(json.dumps({'image': name, 'caption': 'a'}) for name in ROWS))
    outside = folder / 'secret.png'
    result = subprocess.run([sys.executable, '-c', CODE, path, folder / 'root', ROOT, outside], capture_output=True,
                            text=True, timeout=100, check=False, cwd=folder, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr[-3000:]
    kinds, opened, control, connected = json.loads(result.stdout)
    assert dict(zip(ROWS, kinds)) == ROWS
    real = {os.path.realpath(name) for name in opened if not name.isdigit()}
    code = (sys.prefix, sys.base_prefix, str(ROOT))  # modules that are imported on the way
    assert {name for name in real if not name.startswith(code)} == {str(folder / 'root' / 'in' / 'a.png'), str(path)}
    assert str(outside) in control and not connected


@pytest.mark.slow
def test_a_data_uri_of_a_gigabyte_is_refused_without_a_copy_of_it():
    code = '''
import resource, sys
sys.path.insert(0, sys.argv[1])
from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.data.transforms.load_media import MediaError
text = "data:image/png;base64," + "A" * 2 ** 30
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    MediaRoot("/tmp").resolve(text)
except MediaError as error:
    assert error.kind == "too_large" and len(str(error)) < 300, error
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
'''
    result = subprocess.run([sys.executable, '-c', code, ROOT], capture_output=True, text=True, timeout=100, check=True)
    assert int(result.stdout) * 1024 < 50e6
