"""Pictures and videos from the web, from hosts on a list and from nowhere else.

An annotation is data, perhaps a stranger's: an address in it must not reach a machine behind our firewall, fill the
memory or hold a worker. So: off unless hosts are named; http and https on their own ports; a name is resolved once,
each of its addresses must be public, and the connection goes to the address that was checked; each redirect is checked
in the same way; bytes and seconds are capped; what comes back must say that it is an image or a video, and look like
one. Proxies and credentials are not used. Only the time that the system's resolver takes is not capped.
"""
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urljoin, urlsplit

from qvlkit.data.transforms.load_media import MediaError

PORTS = {'http': 80, 'https': 443}
MAX_URL = 4096
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 65536
_NAT64 = ipaddress.ip_network('64:ff9b::/96')


def resolve_host(host: str, port: int) -> list[str]:
    """The numeric addresses of a host, by the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public_address(address: str) -> bool:
    """Whether a numeric address is one of the open internet, also where it wraps another (as ::ffff:127.0.0.1 does)."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # also those with a zone, which are link-local
        return False
    inner = []
    if parsed.version == 6:
        inner = [parsed.ipv4_mapped, parsed.sixtofour, parsed.teredo[1] if parsed.teredo else None,
                 ipaddress.ip_address(int(parsed) & 0xFFFFFFFF) if parsed in _NAT64 else None]
    mapped = parsed.version == 6 and parsed.ipv4_mapped is not None
    return all(one.is_global and not one.is_multicast for one in [*([] if mapped else [parsed]), *filter(None, inner)])


def media_kind(head: bytes) -> str | None:
    """'image', 'video' or None, by the first 16 bytes of a file."""
    if head.startswith((b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'GIF87a', b'GIF89a', b'BM', b'II*\0', b'MM\0*')):
        return 'image'
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        return 'image'
    is_video = head[4:8] == b'ftyp' or head[:4] in (b'\x1aE\xdf\xa3', b'\0\0\1\xba', b'OggS') or (
        head[:4] == b'RIFF' and head[8:12] == b'AVI ')
    return 'video' if is_video else None


class Fetcher:
    """Fetches media from allowed hosts.

    Args:
        allow_hosts: Names as 'example.org', or 'example.org:8080' for a port of its own; no wildcards. Empty: nothing.
        max_bytes: Of a file.
        max_seconds: For the whole of it, redirects included.
        max_redirects: How many are followed.
        resolver: (host, port) -> numeric addresses.
        is_allowed_address: Whether a numeric address may be connected to; tests replace it to reach their own server.
    """

    def __init__(self, allow_hosts: Sequence[str], *, max_bytes: int = 256 * 2 ** 20, max_seconds: float = 30.0,
                 max_redirects: int = 3, resolver: Callable[[str, int], list[str]] = resolve_host,
                 is_allowed_address: Callable[[str], bool] = is_public_address):
        if isinstance(allow_hosts, str) or not all(isinstance(host, str) and host and not set(host) & set('*/@ ')
                                                   for host in allow_hosts):
            raise ValueError(f"allow_hosts: expected a list of host names such as 'example.org', got {allow_hosts!r}")
        self.allow_hosts = frozenset(host.lower() for host in allow_hosts)
        self._max_bytes, self._max_seconds, self._max_redirects = max_bytes, max_seconds, max_redirects
        self._resolver, self._is_allowed_address = resolver, is_allowed_address

    def fetch(self, url: str) -> bytes:
        """The file at `url`.

        Raises:
            MediaError: kind 'url_refused' (not allowed), 'too_large', 'fetch_timeout' or 'fetch_failed'.
        """
        deadline = time.monotonic() + self._max_seconds
        for _ in range(self._max_redirects + 1):
            scheme, host, port = self._check(url)
            addresses = self._addresses(url, host, port)
            try:
                answer = self._get(url, scheme, host, port, addresses, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, MediaError):
                    raise
                if time.monotonic() >= deadline:
                    raise self._too_slow(url) from error
                raise MediaError(f'{url[:200]!r} cannot be fetched: {type(error).__name__}: {error}',
                                 'fetch_failed') from error
            if isinstance(answer, bytes):
                return answer
            target = urljoin(url, answer)
            if scheme == 'https' and not target.lower().startswith('https:'):
                raise MediaError(f'{url[:200]!r} redirects from https to {target[:200]!r}', 'url_refused')
            url = target
        raise MediaError(f'more than {self._max_redirects} redirects, the last to {url[:200]!r}', 'url_refused')

    def _check(self, url: str) -> tuple[str, str, int]:
        """(scheme, host, port) of an address that the list allows."""
        if len(url) > MAX_URL or not all('!' <= letter <= '~' and letter != '\\' for letter in url):
            raise MediaError(f'URL {url[:80]!r}: expected up to {MAX_URL} printable ASCII characters', 'url_refused')
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or '').rstrip('.'), parts.port
        except ValueError as error:
            raise MediaError(f'URL {url[:200]!r} is ill-formed: {error}', 'url_refused') from error
        if parts.scheme not in PORTS or parts.username is not None or parts.password is not None or not host:
            raise MediaError(f'URL {url[:200]!r}: expected http or https, a host and no credentials', 'url_refused')
        name = host if port in (None, PORTS[parts.scheme]) else f'{host}:{port}'
        if name not in self.allow_hosts:
            raise MediaError(f'URL {url[:200]!r}: the host {name!r} is not in allow_hosts '
                             f'({", ".join(sorted(self.allow_hosts)) or "empty"})', 'url_refused')
        return parts.scheme, host, port or PORTS[parts.scheme]

    def _addresses(self, url: str, host: str, port: int) -> list[str]:
        """What the host resolves to, asked once; refused if any of it is not allowed."""
        try:
            addresses = self._resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise MediaError(f'{url[:200]!r}: the host {host!r} cannot be resolved: {error}', 'fetch_failed') from error
        for address in addresses:
            if not self._is_allowed_address(address):
                raise MediaError(f'{url[:200]!r}: the host {host!r} has the address {address}, which is not public',
                                 'url_refused')
        if not addresses:
            raise MediaError(f'{url[:200]!r}: the host {host!r} has no address', 'fetch_failed')
        return addresses

    def _get(self, url: str, scheme: str, host: str, port: int, addresses: list[str], deadline: float) -> bytes | str:
        """The body, or where a redirect leads."""
        sock = _connect(addresses, port, deadline)
        # A socket's own time limit is for one packet; this one ends a connection that drips.
        timer = threading.Timer(max(deadline - time.monotonic(), 0), _shut, [sock])
        timer.daemon = True
        timer.start()
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.sock = ssl.create_default_context().wrap_socket(
                sock, server_hostname=host) if scheme == 'https' else sock
            parts = urlsplit(url)
            connection.request('GET', (parts.path or '/') + (f'?{parts.query}' if parts.query else ''),
                               headers={'Accept': 'image/*, video/*', 'Accept-Encoding': 'identity',
                                        'User-Agent': 'qvlkit', 'Connection': 'close'})
            response = connection.getresponse()
            if time.monotonic() >= deadline:
                raise self._too_slow(url)
            if response.status in _REDIRECTS and response.getheader('Location'):
                return response.getheader('Location')
            self._check_header(url, response)
            return self._read(url, response, deadline)
        finally:
            timer.cancel()
            connection.close()
            sock.close()

    def _check_header(self, url: str, response: http.client.HTTPResponse) -> None:
        if response.status != 200:
            raise MediaError(f'{url[:200]!r} answers {response.status} {response.reason[:80]}', 'fetch_failed')
        kind = (response.getheader('Content-Type') or '').partition(';')[0].strip().lower()
        if not kind.startswith(('image/', 'video/')) and kind != 'application/octet-stream':
            raise MediaError(f'{url[:200]!r} is of type {kind[:80]!r}: expected an image or a video', 'fetch_failed')
        if (response.getheader('Content-Encoding') or 'identity').lower() != 'identity':
            raise MediaError(f'{url[:200]!r} comes compressed, which was not asked for', 'fetch_failed')
        if response.length is not None and response.length > self._max_bytes:
            raise self._too_large(url, f'{response.length} bytes')

    def _read(self, url: str, response: http.client.HTTPResponse, deadline: float) -> bytes:
        body, expected, checked = bytearray(), response.length, False
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > self._max_bytes:
                raise self._too_large(url, 'more')
            if len(body) >= 16 and not checked:
                checked = _check_magic(url, body)
            if time.monotonic() >= deadline:
                break
        if time.monotonic() >= deadline:
            raise self._too_slow(url)
        if expected is not None and len(body) != expected:
            raise MediaError(f'{url[:200]!r} ends after {len(body)} of {expected} bytes', 'fetch_failed')
        if not checked:
            _check_magic(url, body)
        return bytes(body)

    def _too_large(self, url: str, found: str) -> MediaError:
        return MediaError(f'{url[:200]!r} has {found}, limit {self._max_bytes} bytes', 'too_large')

    def _too_slow(self, url: str) -> MediaError:
        return MediaError(f'{url[:200]!r} took more than {self._max_seconds} seconds', 'fetch_timeout')


def _check_magic(url: str, body: bytes | bytearray) -> bool:
    if media_kind(bytes(body[:16])) is None:
        raise MediaError(f'{url[:200]!r} is neither an image nor a video: it begins with {bytes(body[:8])!r}',
                         'fetch_failed')
    return True


def _connect(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """A connection to the first of the checked addresses that answers."""
    for index, address in enumerate(addresses):
        try:
            return socket.create_connection((address, port), timeout=max(deadline - time.monotonic(), 0.001))
        except OSError:
            if index == len(addresses) - 1:
                raise
    raise OSError('no address')


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed already
