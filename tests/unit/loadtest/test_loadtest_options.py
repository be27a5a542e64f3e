"""Options: a wrong one is named, sizes follow from others, and the shares of processes add up."""

import pytest

from loadtest.__main__ import main
from loadtest.errors import OptionError
from loadtest.options import Options, parse

TARGET = ["--target", "127.0.0.1:50051"]


class TestWrongOptions:
    """What cannot run ends with status 2."""

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--streams", "0"], "--streams: must be at least 1"),
            (["--seconds", "0"], "--seconds: must be at least 0.05"),
            (["--seconds", "nan"], "--seconds: "),
            (["--rate", "-1"], "--rate: must be at least 0"),
            (["--rate", "inf"], "--rate: "),
            (["--target", "nowhere"], "--target: 'nowhere' is not HOST:PORT"),
            (["--target", "host:0"], "--target: 'host:0' is not HOST:PORT"),
            (["--metrics", "host:port"], "--metrics: 'host:port' is not HOST:PORT"),
            (["--frame-steps", "16"], "--frame-steps: goes with --mode frame or prime"),
            (["--horizon", "5"], "--horizon: goes with --mode forecast, not stream"),
            (["--mode", "forecast", "--frame-steps", "5"], "--frame-steps: goes with --mode frame or prime"),
            (["--in-flight", "0"], "--in-flight: must be at least 1"),
            (["--streams", "2", "--processes", "3"], "--processes: 3 of them cannot share 2 streams"),
            (["--mode", "frame", "--streams", "5000"], "--streams: 1,280,000 sessions are over"),
            (["--mode", "frame", "--max-steps", "100"], "--max-steps: 100 are less than one message"),
            (["--metrics", "h:1", "--server-pid", "1"], "--server-pid: does not go with --metrics"),
        ],
    )
    def test_wrong_option_is_one_line_that_names_it(self, arguments, named, capsys):
        """The exit status is 2, before any connection."""
        assert main([*TARGET, *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"loadtest: {named}")
        assert said.count("\n") == 1

    @pytest.mark.parametrize("arguments", [[], [*TARGET, "--streams", "many"], [*TARGET, "--mode", "fast"]])
    def test_command_line_that_cannot_be_parsed_ends_with_usage(self, arguments):
        """The exit status is 2 too."""
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2

    def test_unknown_mode_is_refused_in_code_too(self):
        """Options check themselves, also without a command line."""
        with pytest.raises(OptionError, match="--mode"):
            Options(target="a:1", mode="fast")

    def test_missing_server_is_one_line(self, capsys):
        """Nobody listens on port 1 of the loopback."""
        assert main(["--target", "127.0.0.1:1"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("loadtest: no Streamcell server answers at 127.0.0.1:1 (UNAVAILABLE")
        assert said.count("\n") == 1


class TestSizes:
    """What follows from the options given."""

    def test_sizes_follow_from_the_mode(self):
        """A frame holds a step of each of its sessions; a history belongs to one session."""
        frame = parse([*TARGET, "--mode", "frame", "--streams", "3", "--frame-steps", "16"])
        assert (frame.steps_per_message, frame.num_sessions) == (16, 48)
        prime = parse([*TARGET, "--mode", "prime", "--streams", "3"])
        assert (prime.steps_per_message, prime.num_sessions) == (1000, 3)
        forecast = parse([*TARGET, "--mode", "forecast", "--streams", "3"])
        assert (forecast.steps_per_message, forecast.horizon_steps, forecast.num_sessions) == (1, 48, 3)

    @pytest.mark.parametrize(
        ("streams", "asked", "made"), [(1, 0, 1), (8, 0, 1), (9, 0, 2), (256, 0, 8), (256, 32, 32), (2, 5, 2)]
    )
    def test_eight_streams_share_a_connection_up_to_eight_connections(self, streams, asked, made):
        """By default. There are never more connections than streams."""
        assert Options(target="a:1", streams=streams, connections=asked).num_connections == made

    def test_shares_of_processes_add_up(self):
        """The streams, the rate, the bound on steps and the connections."""
        whole = Options(
            target="a:1", streams=10, processes=3, rate=100.0, max_steps=100, connections=4, metrics="a:2"
        )
        shares = [whole.share(number) for number in range(3)]
        assert [share.streams for share in shares] == [4, 3, 3]
        assert sum(share.rate for share in shares) == pytest.approx(100)
        assert sum(share.max_steps for share in shares) == 100
        assert sum(share.connections for share in shares) == 4
        assert all(share.processes == 1 and not share.metrics for share in shares)
