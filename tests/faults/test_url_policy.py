"""URLs in annotations: closed by default, and where hosts are allowed, blocked or cut at a limit."""
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.fetch import Fetcher, is_public_address, media_kind
from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.data.transforms.load_media import MediaError, load_image
from qvlkit.structures import SampleError

buffer = BytesIO()
Image.effect_noise((64, 64), 80).save(buffer, 'PNG')
PNG = buffer.getvalue()
HEADER = PNG[:16]


class Handler(BaseHTTPRequestHandler):
    """Answers by path; counts what it is asked and what it sends."""

    def log_message(self, *_):
        pass

    def answer(self, status=200, length=None, kind='image/png', **more):
        self.send_response(status)
        if kind:
            self.send_header('Content-Type', kind)
        if length is not None:
            self.send_header('Content-Length', str(length))
        for name, value in more.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()

    def send(self, data):
        self.wfile.write(data)
        self.server.sent += len(data)

    def do_GET(self):
        self.server.asked.append((self.path, self.headers['Host']))
        try:
            self.dispatch(self.path.partition('?')[0], self.server.server_address[1])
        except OSError:
            pass  # the other side has hung up

    def dispatch(self, path, port):
        places = {'/same': f'http://img.test:{port}/a.png', '/relative': 'a.png', '/again': '/again',
                  '/loopback': f'http://127.0.0.1:{port}/a.png', '/other': 'http://other.test/a.png',
                  '/file': 'file:///etc/passwd', '/inner': f'http://inner.test:{port}/a.png'}
        if path in places:
            return self.answer(302, 0, Location=places[path])
        kinds = {'/html': ('text/html', b'<html>' * 9), '/lie': ('image/png', b'<html>' * 9),
                 '/short': ('image/png', b'<'),
                 '/svg': ('image/svg+xml', b'<svg xmlns="http://www.w3.org/2000/svg"/>'), '/untyped': (None, PNG),
                 '/text.png': ('text/plain', PNG), '/octets': ('application/octet-stream', PNG)}
        if path in kinds:
            kind, body = kinds[path]
            self.answer(length=len(body), kind=kind)
            return self.send(body)
        if path == '/10gb':
            self.answer(length=10 * 2 ** 30)
            return self.stream(2 ** 20, 0)
        if path == '/endless':
            self.answer()
            return self.stream(2 ** 20, 0)
        if path == '/slow':
            self.answer(length=len(PNG))
            return self.stream(1, 0.05)
        if path == '/slow-header':
            for letter in b'HTTP/1.0 200 OK\r\nX-Long: ' + b'a' * 200:
                self.send(bytes([letter]))
                self.wfile.flush()
                time.sleep(0.05)
            return None
        if path == '/half':
            self.answer(length=len(PNG))
            return self.send(PNG[:len(PNG) // 2])
        if path == '/gzip':
            self.answer(length=len(PNG), Content_Encoding='gzip')
            return self.send(PNG)
        self.answer(200 if path == '/a.png' else 404, len(PNG))
        return self.send(PNG)

    def stream(self, step, pause):
        self.send(HEADER)
        for _ in range(20_000):
            self.send(bytes(step))
            self.wfile.flush()
            time.sleep(pause)


@pytest.fixture
def server():
    result = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    result.daemon_threads = True
    result.asked, result.sent = [], 0
    thread = threading.Thread(target=result.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
    thread.start()
    yield result
    result.shutdown()
    result.server_close()


@pytest.fixture
def fetcher(server):
    """Fetches from img.test, which is this process's own server; no other address is let through."""
    def make(allow_hosts=None, **given):
        port = server.server_address[1]
        given = {'resolver': lambda host, port: ['127.0.0.1'], 'is_allowed_address': lambda address: True,
                 'max_seconds': 10.0, **given}
        return Fetcher(allow_hosts or [f'img.test:{port}'], **given)
    return make


def refused(fetcher, url, kind=None):
    with pytest.raises(MediaError) as caught:
        fetcher.fetch(url)
    assert kind is None or caught.value.kind == kind, caught.value
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def address(server, path, host='img.test'):
    return f'http://{host}:{server.server_address[1]}{path}'


@pytest.mark.parametrize('path', ['/a.png', '/a.png?size=big', '/same', '/relative', '/octets'])
def test_an_allowed_picture_comes(server, fetcher, path):
    body = fetcher().fetch(address(server, path))
    assert body == PNG and load_image(body).size == (64, 64)
    assert server.asked[0] == (path, f'img.test:{server.server_address[1]}')


def test_off_by_default_without_a_look_up(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError('asked the network')
    for name in ('getaddrinfo', 'create_connection', 'socket'):
        monkeypatch.setattr(socket, name, never)
    for url in ('http://example.org/a.png', 'https://example.org/a.png', 'HTTP://EXAMPLE.ORG', ' http://example.org/a'):
        with pytest.raises(MediaError, match='URLs are off') as caught:
            MediaRoot(tmp_path).resolve(url)
        assert caught.value.kind == 'url_refused'
        refused(Fetcher([]), url.strip(), 'url_refused')


@pytest.mark.parametrize('host', ['127.0.0.1', '169.254.169.254', '[::1]', '2130706433', '0x7f.1', 'localhost',
                                  '0.0.0.0', '[::ffff:127.0.0.1]', '10.0.0.1', '[fe80::1]', '[::]'])
def test_inner_addresses_are_blocked_even_on_the_list(monkeypatch, host):
    def never(*_, **__):
        raise AssertionError('connected')
    monkeypatch.setattr(socket, 'create_connection', never)
    assert 'not in allow_hosts' in refused(Fetcher(['example.org']), f'http://{host}/a.png', 'url_refused')
    refused(Fetcher([host.strip('[]')]), f'http://{host}/a.png')  # by its address, or because it does not resolve


@pytest.mark.parametrize('host, public', [
    ('8.8.8.8', True), ('2001:4860:4860::8888', True), ('::ffff:8.8.8.8', True), ('127.0.0.1', False),
    ('169.254.169.254', False), ('100.64.0.1', False), ('192.168.1.1', False), ('224.0.0.1', False), ('0.0.0.0', False),
    ('::1', False), ('::', False), ('fe80::1', False), ('fe80::1%eth0', False), ('fc00::1', False), ('ff02::1', False),
    ('::ffff:10.0.0.1', False), ('64:ff9b::a00:1', False), ('2002:7f00:1::', False), ('localhost', False), ('', False)])
def test_public_addresses(host, public):
    assert is_public_address(host) is public


def test_every_address_of_a_name_has_to_be_public(server, fetcher):
    mixed = fetcher(resolver=lambda host, port: ['8.8.8.8', '127.0.0.1'], is_allowed_address=is_public_address)
    assert '127.0.0.1, which is not public' in refused(mixed, address(server, '/a.png'), 'url_refused')
    assert not server.asked
    refused(fetcher(resolver=lambda host, port: []), address(server, '/a.png'), 'fetch_failed')


def test_a_name_is_resolved_once_and_the_checked_address_is_used(server, fetcher, monkeypatch):
    answers, connected = iter([['127.0.0.1'], ['169.254.169.254']]), []
    connect = socket.create_connection
    monkeypatch.setattr(socket, 'create_connection', lambda where, **given: connected.append(where) or connect(
        where, **given))
    pinned = fetcher(resolver=lambda host, port: next(answers), is_allowed_address=lambda one: one == '127.0.0.1')
    assert pinned.fetch(address(server, '/a.png')) == PNG
    assert connected == [('127.0.0.1', server.server_address[1])]
    refused(pinned, address(server, '/a.png'), 'url_refused')  # the second answer


def test_dns_that_changes_between_hops_is_checked_again(server, fetcher):
    answers = iter([['127.0.0.1'], ['169.254.169.254']])
    changing = fetcher(resolver=lambda host, port: next(answers), is_allowed_address=lambda one: one == '127.0.0.1')
    assert '169.254.169.254' in refused(changing, address(server, '/same'), 'url_refused')
    assert len(server.asked) == 1


@pytest.mark.parametrize('path, words', [
    ('/loopback', '127.0.0.1'), ('/other', "'other.test' is not in allow_hosts"), ('/file', 'expected http or https'),
    ('/again', 'more than 3 redirects')])
def test_redirects_are_checked_hop_by_hop(server, fetcher, path, words):
    assert words in refused(fetcher(), address(server, path), 'url_refused')
    assert len(server.asked) == (4 if path == '/again' else 1)


def test_a_redirect_to_an_allowed_name_with_an_inner_address(server, fetcher):
    port = server.server_address[1]
    names = {'img.test': ['127.0.0.1'], 'inner.test': ['127.0.0.2']}
    both = fetcher([f'img.test:{port}', f'inner.test:{port}'], resolver=lambda host, port: names[host],
                   is_allowed_address=lambda one: one == '127.0.0.1')
    assert 'inner.test' in refused(both, address(server, '/inner'), 'url_refused') and len(server.asked) == 1


def test_ten_gigabytes_are_refused_by_their_header(server, fetcher):
    assert '10737418240 bytes' in refused(fetcher(max_bytes=10 ** 6), address(server, '/10gb'), 'too_large')


def test_an_endless_body_is_cut(server, fetcher):
    started = time.perf_counter()
    refused(fetcher(max_bytes=10 ** 6), address(server, '/endless'), 'too_large')
    assert time.perf_counter() - started < 5 and server.sent < 50 * 10 ** 6


@pytest.mark.parametrize('path', ['/slow', '/slow-header'])
def test_slow_answers_are_cut(server, fetcher, path):
    started = time.perf_counter()
    refused(fetcher(max_seconds=0.6), address(server, path), 'fetch_timeout')
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize('path, words', [
    ('/html', "type 'text/html'"), ('/lie', 'neither an image nor a video'), ('/short', 'neither'), ('/svg', 'neither'),
    ('/untyped', "type ''"), ('/text.png', "type 'text/plain'"), ('/none', 'answers 404'), ('/gzip', 'compressed'),
    ('/half', 'ends after')])
def test_what_is_no_medium_is_refused(server, fetcher, path, words):
    assert words in refused(fetcher(), address(server, path), 'fetch_failed')


def test_a_broken_tls_handshake_fails_closed(server, fetcher):
    url = address(server, '/a.png').replace('http:', 'https:')
    assert 'SSL' in refused(fetcher(), url, 'fetch_failed')
    assert not server.asked


@pytest.mark.parametrize('url', [
    'http://user:secret@img.test/a', 'http://img.test@evil.test/a', 'http://img.test:99999/a', 'http://img.test:8/a',
    'ftp://img.test/a', 'gopher://img.test/a', 'http:///a', 'http://img.test\\@evil.test/a', 'http://img.test/a b',
    'http://img.test/\r\nHost: evil', 'http://ïmg.test/a', 'http://sub.img.test/a', 'http://img.test.evil.test/',
    'http://[::1/a', 'http://img.test/' + 'a' * 5000, 'http://%69mg.test/a'])
def test_odd_urls_are_refused_unasked(url):
    def never(*_):
        raise AssertionError('resolved')
    refused(Fetcher(['img.test'], resolver=never), url, 'url_refused')


@pytest.mark.parametrize('allow_hosts', ['example.org', ['*'], ['*.org'], ['http://example.org'], [''], [7]])
def test_the_list_itself_is_checked(allow_hosts):
    with pytest.raises(ValueError, match='allow_hosts'):
        Fetcher(allow_hosts)


def test_kinds_by_first_bytes():
    assert media_kind(PNG[:16]) == 'image' and media_kind(b'RIFF\0\0\0\0WEBPVP8 ') == 'image'
    assert media_kind(b'\0\0\0\x18ftypisom\0\0\0\0') == media_kind(b'RIFF\0\0\0\0AVI LIST') == 'video'
    assert media_kind(b'RIFF\0\0\0\0WAVEfmt ') is None and media_kind(b'') is None


def test_a_dataset_fetches_from_its_hosts_only(tmp_path, server, fetcher):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps([{'image': url, 'caption': 'a'} for url in (
        address(server, '/a.png'), 'http://other.test/a.png')]))
    data = ConversationDataset(str(path), allow_hosts=['img.test'])
    data.store._root = MediaRoot(tmp_path, fetcher=fetcher())
    assert data[0].media()[0].source == PNG
    with pytest.raises(SampleError, match=r'x.json\[1\]: .*not in allow_hosts') as caught:
        data[1]
    assert caught.value.kind == 'url_refused'
    with pytest.raises(SampleError, match='URLs are off'):
        ConversationDataset(str(path))[0]
