"""Where Envoy finds its certificates, and which clients it answers in plain text."""

import json
import os
import pathlib
import stat

import pytest

from service.config import Config
from service.fronts.envoy import encryption
from service.fronts.envoy.encryption import SecretFiles, prepare, secret_path


def pyvoys(settings):
    """The parts of pyvoy's configuration that are changed."""
    context = {"tls_certificates": [{}], "validation_context": {}}
    chain = {"filters": ["http"]}
    if settings.tls_cert:
        chain["transport_socket"] = {"typed_config": {"common_tls_context": context}}
    return {"static_resources": {"listeners": [{"filter_chains": [chain]}]}}


@pytest.fixture
def settings(tmp_path):
    """Settings with TLS; the files hold their names."""
    paths = {
        "tls_cert": "server.pem",
        "tls_key": "server.key",
        "tls_client_ca": "ca.pem",
    }
    for name in paths.values():
        (tmp_path / name).write_text(name)
    return Config(**{field: str(tmp_path / name) for field, name in paths.items()})


def files_of(folder):
    """Returns what the secrets in a folder lead to, by kind."""
    found = {}
    for name in ("server", "clients"):
        (secret,) = json.loads(secret_path(folder, name).read_text())["resources"]
        assert secret["name"] == name
        for kind in secret.get("tls_certificate", secret.get("validation_context")).items():
            found[kind[0]] = kind[1]["filename"]
    return found


class TestSecretFiles:
    """Certificates for Envoy, on files that name files."""

    def test_they_lead_to_the_files_of_the_settings(self, tmp_path, settings):
        """By links: nothing is copied, so the key lies on no second place of a disk."""
        folder = tmp_path / "secrets"
        folder.mkdir()
        SecretFiles(folder).renew(settings)
        found = files_of(folder)
        contents = {kind: pathlib.Path(path).read_text() for kind, path in found.items()}
        assert contents == {
            "certificate_chain": "server.pem", "private_key": "server.key", "trusted_ca": "ca.pem",
        }  # fmt: skip
        assert all(os.path.islink(path) for path in found.values())
        regular = [path.name for path in folder.iterdir() if not path.is_symlink()]
        assert sorted(regular) == ["clients.json", "server.json"]

    def test_a_renewal_has_new_names_and_the_last_ones_stay(self, tmp_path, settings):
        """Envoy may be reading the last ones still; older ones are removed."""
        folder = tmp_path / "secrets"
        folder.mkdir()
        secrets, seen = SecretFiles(folder), []
        for _ in range(4):
            secrets.renew(settings)
            seen.append(set(files_of(folder).values()))
        assert len(set.union(*seen)) == 12
        assert {str(path) for path in folder.iterdir() if path.is_symlink()} == seen[-1] | seen[-2]


class TestPrepare:
    """Envoy's configuration."""

    def test_with_tls_certificates_come_from_secrets(self, tmp_path, settings):
        """In a folder that only this user can read; a server in Envoy is told where."""
        found = pyvoys(settings)
        prepare(found, settings, tmp_path / "x.sock")
        folder = tmp_path / "x.tls"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert encryption.folder_of(tmp_path / "x.sock") == folder
        encrypted, plain = found["static_resources"]["listeners"][0]["filter_chains"]
        context = encrypted["transport_socket"]["typed_config"]["common_tls_context"]
        (server,), clients = (
            context.pop(f"{kind}_sds_secret_config{plural}")
            for kind, plural in (("tls_certificate", "s"), ("validation_context", ""))
        )
        assert context == {}
        for source, name in ((server, "server"), (clients, "clients")):
            assert source["name"] == name
            path = source["sds_config"]["path_config_source"]["path"]
            assert path == str(folder / f"{name}.json")
            assert os.path.exists(path)
        assert encrypted["filter_chain_match"] == {"transport_protocol": "tls"}
        assert plain["filter_chain_match"] == {"transport_protocol": "raw_buffer"}
        assert "transport_socket" not in plain
        # A client of HTTP/2 would send its token, once it has seen the server's settings.
        assert plain["filters"][0]["typed_config"]["codec_type"] == "HTTP1"

    def test_without_tls_clients_with_tls_are_counted(self, tmp_path):
        """Nothing else changes."""
        found = pyvoys(Config())
        prepare(found, Config(), tmp_path / "x.sock")
        (listener,) = found["static_resources"]["listeners"]
        assert [each["name"] for each in listener["listener_filters"]] == [
            "envoy.filters.listener.tls_inspector"
        ]
        assert listener["filter_chains"] == [{"filters": ["http"]}]
        assert not (tmp_path / "x.tls").exists()
