"""Which files an annotation may name: those under one folder, after every '..' and link is followed.

An annotation is data, perhaps a stranger's: it must not be able to read /etc/passwd into a training run. URLs are
refused unless hosts are named, see `qvlkit.data.fetch`.
"""
from collections.abc import Sequence
from pathlib import Path

from qvlkit.data.fetch import Fetcher
from qvlkit.data.transforms.load_media import MediaError, decode_data_uri, is_url

MAX_PATH = 4096


class MediaRoot:
    """The folder under which an annotation's media lie.

    Args:
        folder: Relative paths start here, and no path may lead out of it.
        allow_hosts: Hosts from which URLs are fetched, such as 'example.org'; empty: URLs are refused.
        fetcher: In the place of a `Fetcher` for `allow_hosts` with its default limits.
    """

    def __init__(self, folder: str | Path, *, allow_hosts: Sequence[str] = (), fetcher: Fetcher | None = None):
        self.folder = Path(folder).expanduser().resolve()
        self._fetcher = fetcher or (Fetcher(allow_hosts) if allow_hosts else None)

    def resolve(self, text: str) -> Path | bytes:
        """The file that `text` names, or the bytes of a base64 data URI or behind an allowed URL.

        Raises:
            MediaError: kind 'path_refused' (leads out of the folder, NUL, too long), 'url_refused', or
                'missing_media' (no such file), or as for `Fetcher.fetch`. The content of a file is not read.
        """
        if not isinstance(text, str) or not text:
            raise MediaError(f'expected a media path, got {text!r:.200}', 'wrong_type')
        if text.startswith('data:'):
            return decode_data_uri(text)
        if is_url(text) and self._fetcher is not None:
            return self._fetcher.fetch(text.strip())
        if is_url(text):
            raise MediaError(f'{text[:200]!r} is a URL: URLs are off, only files under {str(self.folder)!r} are read',
                             'url_refused')
        if '\0' in text or len(text) > MAX_PATH:
            what = 'holds a NUL byte' if '\0' in text else f'has {len(text)} characters, limit {MAX_PATH}'
            raise MediaError(f'path {text[:80]!r} {what}', 'path_refused')
        try:
            path = (self.folder / text).resolve()
            if not path.is_relative_to(self.folder):
                raise MediaError(f'{text[:200]!r} leads out of the media folder {str(self.folder)!r}', 'path_refused')
            if not path.is_file():
                what = 'is a folder' if path.is_dir() else 'does not exist'
                raise MediaError(f'media file {text[:200]!r} {what} (looked for {str(path)[:300]!r})', 'missing_media')
        except (OSError, RuntimeError) as error:
            raise MediaError(f'path {text[:80]!r} cannot be followed: {error}', 'path_refused') from error
        return path
