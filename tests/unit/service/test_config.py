"""Settings: flags, variables, precedence, and messages that name the flag at fault."""

import dataclasses
import pathlib

import pytest

from service.config import ENV_PREFIX, PRINCIPAL_LIMITS, Address, Config, as_given, from_command
from service.errors import ConfigError

# For every field: the flag's name, a text that differs from the default, and the value that the text means.
FIELDS = [
    ("listen", "--listen", "0.0.0.0:0", Address("0.0.0.0", 0)),  # noqa: S104
    ("metrics_listen", "--metrics-listen", "[::1]:9999", Address("::1", 9999)),
    ("models", "--models", "some/where", pathlib.Path("some/where")),
    ("models_poll_seconds", "--models-poll-seconds", "0.5", 0.5),
    ("on_new_version", "--on-new-version", "migrate", "migrate"),
    ("allowed_artifacts", "--allowed-artifacts", "allowed.sha256", "allowed.sha256"),
    ("store", "--store", "sqlite:some.db", "sqlite:some.db"),
    ("durable_without_disk", "--durable-without-disk", "refuse", "refuse"),
    ("store_wait_seconds", "--store-wait-seconds", "0", 0.0),
    ("checkpoint_interval_seconds", "--checkpoint-interval-seconds", "0.25", 0.25),
    ("max_changed_sessions", "--max-changed-sessions", "17", 17),
    ("snapshot_key", "--snapshot-key", "keys.txt", "keys.txt"),
    ("device", "--device", "cpu", "cpu"),
    ("workers", "--workers", "3", 3),
    ("front", "--front", "envoy", "envoy"),
    ("threads", "--threads", "3", 3),
    ("cpu_scheduling", "--cpu-scheduling", "normal", "normal"),
    ("max_resident_sessions", "--max-resident-sessions", "7", 7),
    ("time_order", "--time-order", "any", "any"),
    ("session_ttl_seconds", "--session-ttl-seconds", "0", 0.0),
    ("replies_kept", "--replies-kept", "2", 2),
    ("max_queue_steps", "--max-queue-steps", "5", 5),
    ("max_batch_steps", "--max-batch-steps", "6", 6),
    ("max_piece_steps", "--max-piece-steps", "9", 9),
    ("max_hold_seconds", "--max-hold-seconds", "0", 0.0),
    ("max_message_steps", "--max-message-steps", "11", 11),
    ("max_message_bytes", "--max-message-bytes", "12", 12),
    ("max_metadata_bytes", "--max-metadata-bytes", "2048", 2048),
    ("max_horizon_steps", "--max-horizon-steps", "13", 13),
    ("max_stream_sessions", "--max-stream-sessions", "18", 18),
    ("max_stream_messages", "--max-stream-messages", "14", 14),
    ("max_connections", "--max-connections", "15", 15),
    ("max_connection_streams", "--max-connection-streams", "16", 16),
    ("max_active_calls", "--max-active-calls", "19", 19),
    ("max_early_resets", "--max-early-resets", "20", 20),
    ("max_arriving_bytes", "--max-arriving-bytes", "5000000", 5_000_000),
    ("arrival_timeout_seconds", "--arrival-timeout-seconds", "0.5", 0.5),
    ("keepalive_seconds", "--keepalive-seconds", "1.5", 1.5),
    ("drain_timeout_seconds", "--drain-timeout-seconds", "0.5", 0.5),
    ("drain_delay_seconds", "--drain-delay-seconds", "2.5", 2.5),
    ("reflection", "--reflection", "false", False),
    ("channelz", "--channelz", "true", True),
    ("cors_origins", "--cors-origins", "https://a.example,http://b:80", "https://a.example,http://b:80"),
    ("tls_cert", "--tls-cert", "cert.pem", "cert.pem"),
    ("tls_key", "--tls-key", "key.pem", "key.pem"),
    ("tls_client_ca", "--tls-client-ca", "ca.pem", "ca.pem"),
    ("insecure", "--insecure", "true", True),
    ("tokens", "--tokens", "tokens.txt", "tokens.txt"),
    ("jwt_keys", "--jwt-keys", "keys.json", "keys.json"),
    ("jwt_audience", "--jwt-audience", "streamcell", "streamcell"),
    ("jwt_issuer", "--jwt-issuer", "https://issuer.example", "https://issuer.example"),
    ("principal_max_sessions", "--principal-max-sessions", "7", 7),
    ("principal_max_streams", "--principal-max-streams", "8", 8),
    ("principal_steps_per_second", "--principal-steps-per-second", "9.5", 9.5),
    ("principal_bytes_per_second", "--principal-bytes-per-second", "1e+06", 1e6),
    ("reload_seconds", "--reload-seconds", "0", 0.0),
]
COMPANIONS = {  # the other flags that a flag needs
    "cors_origins": ["--front", "envoy"],
    "tls_cert": ["--tls-key", "key.pem"],
    "tls_key": ["--tls-cert", "cert.pem"],
    "tls_client_ca": ["--tls-key", "key.pem", "--tls-cert", "cert.pem"],
    **{name: ["--tokens", "tokens.txt"] for name in PRINCIPAL_LIMITS},
    "jwt_keys": ["--jwt-audience", "streamcell"],
    "jwt_audience": ["--jwt-keys", "keys.json"],
    "jwt_issuer": ["--jwt-keys", "keys.json", "--jwt-audience", "streamcell"],
}


COUNTS = [
    field.name
    for field in dataclasses.fields(Config)
    if type(field.default) is int and field.name not in PRINCIPAL_LIMITS
]


class TestFlagsAndVariables:
    """A setting comes from its flag, its variable or its default, in this order."""

    def test_every_field_is_tried_here(self):
        """FIELDS has every setting, in order."""
        assert [row[0] for row in FIELDS] == [field.name for field in dataclasses.fields(Config)]

    @pytest.mark.parametrize(("name", "flag", "text", "value"), FIELDS)
    def test_a_flag_sets_its_field(self, name, flag, text, value):
        """Each flag gives its field the value that the text means, in the field's type."""
        found = getattr(from_command([flag, text, *COMPANIONS.get(name, [])], {}), name)
        assert found == value
        assert type(found) is type(value) or isinstance(value, pathlib.Path)

    @pytest.mark.parametrize(("name", "flag", "text", "value"), FIELDS)
    def test_a_variable_sets_its_field(self, name, flag, text, value):
        """Each field's variable is STREAMCELL_ and its flag in capitals."""
        variable = "STREAMCELL_" + flag.removeprefix("--").replace("-", "_").upper()
        assert getattr(from_command(COMPANIONS.get(name, []), {variable: text}), name) == value

    def test_nothing_given_means_the_defaults(self):
        """Without flags and variables the settings are Config's defaults. Other variables change nothing."""
        assert from_command([], {"MAX_BATCH_STEPS": "3", "STREAMCELL_UNHEARD_OF": "3"}) == Config()

    def test_the_flag_wins_over_the_variable(self):
        """With a flag and a variable for one setting the flag counts, and a bad variable does no harm."""
        assert from_command(["--threads", "2"], {"STREAMCELL_THREADS": "5"}).threads == 2
        assert from_command(["--threads", "2"], {"STREAMCELL_THREADS": "junk"}).threads == 2

    def test_an_empty_variable_counts_as_unset(self):
        """`STREAMCELL_THREADS=` leaves the default, as in a compose file with an empty default."""
        assert from_command([], {"STREAMCELL_THREADS": ""}).threads == Config().threads

    @pytest.mark.parametrize(("text", "value"), [("TRUE", True), ("1", True), ("False", False), ("0", False)])
    def test_truth_in_any_case(self, text, value):
        """true, false, 1 and 0 are understood, in upper and lower case."""
        assert from_command(["--reflection", text], {}).reflection is value

    @pytest.mark.parametrize("flag", ["--insecure", "--reflection", "--channelz"])
    def test_a_flag_alone_means_true(self, flag):
        """The value may be left out, also before another flag."""
        for arguments in ([flag], [flag, "--threads", "2"], ["--threads", "2", flag]):
            assert getattr(from_command(arguments, {}), flag[2:]) is True

    def test_settings_cannot_change(self):
        """The settings are frozen."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            Config().threads = 2  # type: ignore[misc]


class TestWrongValues:
    """A wrong value is refused with the name of its flag or variable."""

    @pytest.mark.parametrize(
        ("flag", "text", "says"),
        [
            *((flag, "localhost", "is not HOST:PORT") for flag in ("--listen", "--metrics-listen")),
            *((flag, ":80", "is not HOST:PORT") for flag in ("--listen", "--metrics-listen")),
            *((flag, "::1:80", "is not HOST:PORT") for flag in ("--listen", "--metrics-listen")),
            *((flag, "h:65536", "0..65535") for flag in ("--listen", "--metrics-listen")),
            *((flag, "h:-1", "0..65535") for flag in ("--listen", "--metrics-listen")),
            *((flag, "h:", "0..65535") for flag in ("--listen", "--metrics-listen")),
            *(("--listen", text, "is not HOST:PORT") for text in ("a,:80", "[a]:80", "[::1:80", "a,::1:80")),
            ("--listen", "", "is not HOST:PORT"),
            ("--device", "tpu", "must be one of auto, cpu, cuda"),
            ("--checkpoint-interval-seconds", "0", "at least 0.01"),
            ("--front", "apache", "must be one of auto, grpcio, envoy"),
            ("--reflection", "maybe", "'maybe' is not true or false"),
            ("--max-metadata-bytes", "1023", "at least 1024"),
            ("--max-arriving-bytes", "4194303", "must hold a message of --max-message-bytes"),
            ("--keepalive-seconds", "0", "at least 0.1"),
            ("--cors-origins", "*", "needs --front envoy"),
            ("--tls-cert", "cert.pem", "goes with --tls-key"),
            ("--tls-client-ca", "ca.pem", "needs --tls-cert and --tls-key"),
            ("--session-ttl-seconds", "-1", "at least 0, not -1"),
            ("--session-ttl-seconds", "nan", "at least 0, not nan"),
            ("--session-ttl-seconds", "inf", "at least 0, not inf"),
            ("--drain-timeout-seconds", "-0.5", "at least 0, not -0.5"),
            ("--drain-timeout-seconds", "soon", "'soon'"),
        ],
    )
    def test_a_bad_value_names_its_flag(self, flag, text, says):
        """An impossible value is a ConfigError of one line: the flag, then what is wrong."""
        with pytest.raises(ConfigError) as caught:
            from_command([flag, text], {})
        message = str(caught.value)
        assert message.startswith(f"{flag}: ")
        assert says in message
        assert "\n" not in message

    @pytest.mark.parametrize("name", COUNTS)
    @pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
    def test_a_bad_count_names_its_flag(self, name, text):
        """Counts and bounds are whole numbers of at least 1."""
        flag = "--" + name.replace("_", "-")
        with pytest.raises(ConfigError, match=f"^{flag}: ") as caught:
            from_command([flag, text], {})
        assert text in str(caught.value)

    @pytest.mark.parametrize(
        "origins", ["a.example", "https://a.example/", "https://a b", "https://a,", "https://*.a"]
    )
    def test_a_wrong_origin_is_named(self, origins):
        """An origin that no browser sends is refused: it would silently allow nothing."""
        with pytest.raises(ConfigError, match=r"^--cors-origins: .* is no origin"):
            from_command(["--front", "envoy", "--cors-origins", origins], {})

    def test_channelz_needs_the_grpcio_front(self):
        """Channelz is refused with Envoy, which has its own statistics."""
        with pytest.raises(ConfigError, match=r"^--channelz: is of --front grpcio"):
            from_command(["--front", "envoy", "--channelz", "true"], {})

    def test_a_lone_key_names_tls_cert(self):
        """A private key without its certificate is refused too."""
        with pytest.raises(ConfigError, match=r"^--tls-cert: "):
            from_command(["--tls-key", "key.pem"], {})

    @pytest.mark.parametrize(
        ("variable", "text"), [("LISTEN", "nonsense"), ("THREADS", "x"), ("REFLECTION", "yes")]
    )
    def test_a_bad_variable_is_named_as_the_variable(self, variable, text):
        """Text that cannot be converted is refused with the name of its variable, not of the flag."""
        with pytest.raises(ConfigError, match=f"^{ENV_PREFIX}{variable}: "):
            from_command([], {ENV_PREFIX + variable: text})

    @pytest.mark.parametrize(
        ("variable", "text", "says"),
        [
            ("THREADS", "0", "must be a number of at least 1"),
            ("DEVICE", "tpu", "must be one of auto, cpu, cuda"),
            ("CORS_ORIGINS", "*", "needs --front envoy"),
            ("TLS_CERT", "cert.pem", "goes with --tls-key"),
        ],
    )
    def test_a_variable_out_of_its_range_is_named_as_the_variable(self, variable, text, says):
        """Also where the value is wrong beside other settings."""
        with pytest.raises(ConfigError, match=f"^{ENV_PREFIX}{variable}: .*{says}"):
            from_command([], {ENV_PREFIX + variable: text})

    def test_a_message_names_each_setting_as_it_was_given(self):
        """A flag that is set by both is named as the flag; a longer name that begins alike is left alone."""
        environment = {f"{ENV_PREFIX}{name}": "x" for name in ("TLS_KEY", "TLS_CERT", "STORE")}
        arguments = ["--tls-cert", "cert.pem"]
        message = as_given("--store-wait-seconds: --tls-cert, --tls-key and --store", arguments, environment)
        assert message == ("--store-wait-seconds: --tls-cert, STREAMCELL_TLS_KEY and STREAMCELL_STORE")

    def test_an_unknown_flag_ends_the_command(self, capsys):
        """An unknown or shortened flag ends with status 2 and its name on standard error."""
        for flag in ("--max-batch", "--turbo"):
            with pytest.raises(SystemExit) as caught:
                from_command([flag, "3"], {})
            assert caught.value.code == 2
            assert flag in capsys.readouterr().err


class TestHelp:
    """What --help prints."""

    def test_help_shows_every_flag_with_its_default(self, capsys):
        """--help names every flag, and shows defaults."""
        with pytest.raises(SystemExit) as caught:
            from_command(["--help"], {})
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert all(flag in text for _, flag, _, _ in FIELDS)
        assert "(127.0.0.1:50051)" in text

    def test_help_shows_which_settings_are_files(self, capsys):
        """So that nobody gives a key or a token itself, which other users of the machine could then read."""
        with pytest.raises(SystemExit):
            from_command(["--help"], {})
        usage = " ".join(capsys.readouterr().out.split())
        for flag in ("allowed-artifacts", "snapshot-key", "tls-cert", "tls-key", "tls-client-ca", "tokens"):
            assert f"[--{flag} FILE]" in usage
        assert "[--jwt-keys FILE]" in usage


class TestAddress:
    """HOST:PORT as text and as a value."""

    def test_an_address_reads_back_as_it_was_written(self):
        """Address.parse and str are each other's inverse, for names, IPv4 and IPv6."""
        for text in ("localhost:0", "127.0.0.1:65535", "[::1]:50051", "a,[::1]:80"):
            assert str(Address.parse(text)) == text
        assert Address.parse("[::1]:1").host == "::1"

    def test_an_address_may_have_several_hosts(self):
        """They have one port; spaces around the commas do not count."""
        found = Address.parse("a, [::1],127.0.0.1:80")
        assert found.hosts == ("a", "::1", "127.0.0.1")
        assert found.port == 80
