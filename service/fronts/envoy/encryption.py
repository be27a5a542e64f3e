"""TLS in Envoy: certificates that are replaced while it serves, and an answer to clients in plain text.

Envoy reads certificates from files that name other files ("secrets"), and reads them again when a new file
with their name is moved into their folder. The folder holds links alone: no key is copied. Does not check
what the linked files hold: `tls.credentials` does.
"""

import json
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

from service.config import Config

VARIABLE = "STREAMCELL_TLS_FOLDER"  # where a worker replaces the secrets of the Envoy around it
_SERVER, _CLIENTS = "server", "clients"
_TYPES = "type.googleapis.com/envoy.extensions"
_SECRET = f"{_TYPES}.transport_sockets.tls.v3.Secret"
_INSPECTOR = {
    "name": "envoy.filters.listener.tls_inspector",
    "typed_config": {"@type": f"{_TYPES}.filters.listener.tls_inspector.v3.TlsInspector"},
}
_SPEAKS_TLS = "this port speaks TLS: use https, or a client's option for TLS\n"


class SecretFiles:
    """The files in a folder from which Envoy reads its certificates."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._links: list[pathlib.Path] = []  # of the secrets that Envoy reads now
        self._older_links: list[pathlib.Path] = []  # of those before, which Envoy may be reading still

    @classmethod
    def inherited(cls, environment: Mapping[str, str]) -> "SecretFiles":
        """Returns the files of the Envoy that this process is in."""
        return cls(pathlib.Path(environment[VARIABLE]))

    def renew(self, settings: Config) -> None:
        """Makes Envoy read the certificates again, for the connections that come from then on."""
        outdated, self._older_links, self._links = self._older_links, self._links, []
        pair = {
            "certificate_chain": self._link(settings.tls_cert),
            "private_key": self._link(settings.tls_key),
        }
        self._put(_SERVER, {"tls_certificate": pair})
        if settings.tls_client_ca:
            authorities = {"trusted_ca": self._link(settings.tls_client_ca)}
            self._put(_CLIENTS, {"validation_context": authorities})
        for link in outdated:
            link.unlink(missing_ok=True)

    def _link(self, file: str) -> dict[str, str]:
        """Returns where Envoy finds a file: a new name each time, so that Envoy sees a new file."""
        link = self._folder / secrets.token_hex(8)
        link.symlink_to(pathlib.Path(file).absolute())
        self._links.append(link)
        return {"filename": str(link)}

    def _put(self, name: str, secret: dict[str, Any]) -> None:
        path = secret_path(self._folder, name)
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"resources": [{"@type": _SECRET, "name": name, **secret}]}))
        os.replace(new, path)


def secret_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the file of a secret."""
    return folder / f"{name}.json"


def folder_of(admin_socket: pathlib.Path) -> pathlib.Path:
    """Returns the folder for the secrets of the Envoy whose administration is on a socket."""
    return admin_socket.with_suffix(".tls")


def prepare(found: dict[str, Any], settings: Config, admin_socket: pathlib.Path) -> None:
    """Changes Envoy's configuration: it takes TLS from secrets, and counts clients of the wrong kind."""
    listener = found["static_resources"]["listeners"][0]
    listener.setdefault("listener_filters", []).append(_INSPECTOR)
    if not settings.tls_cert:
        return
    folder = folder_of(admin_socket)
    folder.mkdir(mode=0o700)
    SecretFiles(folder).renew(settings)
    found["node"] = {"id": "streamcell", "cluster": "streamcell"}  # Envoy wants names, and tells nobody
    (chain,) = listener["filter_chains"]
    context = chain["transport_socket"]["typed_config"]["common_tls_context"]
    del context["tls_certificates"]
    context["tls_certificate_sds_secret_configs"] = [_source(folder, _SERVER)]
    if settings.tls_client_ca:
        del context["validation_context"]
        context["validation_context_sds_secret_config"] = _source(folder, _CLIENTS)
    chain["filter_chain_match"] = {"transport_protocol": "tls"}
    listener["filter_chains"].append(_plain_text_chain())


def _source(folder: pathlib.Path, name: str) -> dict[str, Any]:
    path = str(secret_path(folder, name))
    return {
        "name": name,
        "sds_config": {"path_config_source": {"path": path}, "resource_api_version": "V3"},
    }


def _plain_text_chain() -> dict[str, Any]:
    """Returns the filter chain that answers clients without TLS.

    HTTP/1 alone: such a client has sent all it had to say. A client of HTTP/2 waits for the server's settings
    before it sends its calls, with their tokens; without them it never sends these in plain text.
    """
    answer = {"status": 400, "body": {"inline_string": _SPEAKS_TLS}}
    host = {
        "name": "plain_text",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "direct_response": answer}],
    }
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
    }
    kind = "filters.network.http_connection_manager.v3.HttpConnectionManager"
    http = {
        "@type": f"{_TYPES}.{kind}",
        "stat_prefix": "plain_text",
        "codec_type": "HTTP1",
        "request_headers_timeout": "10s",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [router],
    }
    return {
        "filter_chain_match": {"transport_protocol": "raw_buffer"},
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}],
    }
