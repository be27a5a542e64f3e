"""The TLS files of the settings, used again as a whole when one of them changes.

Certificate and key are two files: between the two changes they do not fit, and what was read before stays in
use. Does not know who uses what was read.
"""

import time
from collections.abc import Callable, Mapping

from service.config import Config
from service.errors import ConfigError
from service.file_version import FileVersion, version_of
from service.telemetry import log
from service.tls.credentials import ServerCredentials, UnusableFileError, iso, read
from service.watched_files import warn_not_reloaded

_SOON_SECONDS = 14 * 86_400.0
_Versions = dict[str, FileVersion | None]  # by flag


class TlsFiles:
    """The certificate, the key and the clients' authorities.

    Args:
        settings: settings with TLS.
        use: called with what the files hold, at first and after each change.
        show_end: called with a file and the Unix time at which its first certificate ends.
        now: the Unix time in seconds.
    """

    def __init__(
        self,
        settings: Config,
        use: Callable[[ServerCredentials], None],
        *,
        show_end: Callable[[str, float], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._use = use
        self._show_end = show_end
        self._now = now
        named = {
            "--tls-cert": settings.tls_cert,
            "--tls-key": settings.tls_key,
            "--tls-client-ca": settings.tls_client_ca,
        }
        self._paths = {flag: path for flag, path in named.items() if path}
        self._seen: _Versions = {}  # at the last look
        self._used: _Versions = {}
        self._told = ""  # the last problem in the log, which is told once
        self._ends: Mapping[str, float] = {}  # of what is in use, by file
        self._told_ends: dict[str, float] = {}  # those in the log, each of which is told once

    def load(self) -> None:
        """Reads the files for the first time.

        Raises:
            ConfigError: a file cannot be used; the message names its flag.
        """
        versions = self._versions()
        try:
            self._take(read(self._settings, self._now()))
        except UnusableFileError as error:
            raise ConfigError(str(error)) from None
        self._seen = self._used = versions
        self._tell_ends()

    def look(self) -> None:
        """Reads the files again if one has changed, and logs the outcome and ends that have come near."""
        self._look_at_files()
        self._tell_ends()

    def _look_at_files(self) -> None:
        versions = self._versions()
        if versions == self._seen:
            return
        try:
            credentials = read(self._settings, self._now())
        except UnusableFileError as error:
            # A certificate that begins later is looked at again, though its file does not change.
            self._seen = {} if error.is_early else versions
            self._warn(error)
            return
        self._take(credentials)  # what raises is tried again at the next look
        used, self._seen, self._used, self._told = self._used, versions, versions, ""
        for flag, path in self._paths.items():
            if versions[flag] != used[flag]:
                shown = {"ends": iso(credentials.ends[path])} if path in credentials.ends else {}
                log.info("file_reloaded", setting=flag, path=path, **shown)

    def _take(self, credentials: ServerCredentials) -> None:
        self._use(credentials)
        self._ends = credentials.ends
        for path, end in self._ends.items():
            self._show_end(path, end)

    def _tell_ends(self) -> None:
        for path, end in self._ends.items():
            if end - self._now() < _SOON_SECONDS and self._told_ends.get(path) != end:
                self._told_ends[path] = end
                log.warning("certificate_ends_soon", setting=self._flag(path), path=path, ends=iso(end))

    def _warn(self, error: UnusableFileError) -> None:
        if str(error) == self._told:
            return
        self._told = str(error)
        warn_not_reloaded(error.flag, error.path, error.problem)

    def _flag(self, path: str) -> str:
        return "--tls-cert" if path == self._settings.tls_cert else "--tls-client-ca"

    def _versions(self) -> _Versions:
        return {flag: version_of(path) for flag, path in self._paths.items()}
