"""Images by digest: what is asked of docker, what is written, and that nothing is written by halves."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMMAND = ["buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}"]
PINS = {
    "PYTHON_IMAGE": ("python:3.11-slim-bookworm", "sha256:" + "a1" * 32),
    "PROMETHEUS_IMAGE": ("prom/prometheus:v3.5.0", "sha256:" + "b2" * 32),
}


@pytest.fixture
def checkout(tmp_path):
    """Returns a folder with the compose file and the script, and a docker that answers with the digests."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "pin_images.py").write_text((ROOT / "deploy" / "pin_images.py").read_text())
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)
    answers = {
        image: {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": 1}
        for image, digest in PINS.values()
    }
    return docker_says(tmp_path, {image: json.dumps(answer) for image, answer in answers.items()})


def docker_says(folder, answers):
    """Makes a fake docker, which answers by image, and fails on any other one."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "docker"
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"*command, image = sys.argv[1:]\n"
        f"assert command == {COMMAND!r}, command\n"
        f"answers = {answers!r}\n"
        "sys.exit(print(answers[image]) if image in answers else f'first line\\nERROR: {image}: not found')\n"
    )
    program.chmod(0o755)
    return folder


def pin(folder, path=None):
    """Runs the script as make does."""
    return subprocess.run(
        [sys.executable, str(folder / "deploy" / "pin_images.py")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": path or str(folder / "bin")},
    )


def test_each_image_is_pinned(checkout):
    """By tag and digest, so that a reader knows what it is; a second run changes nothing."""
    for _ in range(2):
        done = pin(checkout)
        assert (done.returncode, done.stderr) == (0, "")
        found = (checkout / ".env").read_text()
        assert set(found.splitlines()) == {f"{name}={tag}@{digest}" for name, (tag, digest) in PINS.items()}


def test_other_lines_stay(checkout):
    """A digest from before is replaced, whatever else the file has is kept."""
    (checkout / ".env").write_text("# ours\nPYTHON_IMAGE=python:3.11@sha256:old\nSTREAMCELL_WORKERS=2\n")
    assert pin(checkout).returncode == 0
    lines = (checkout / ".env").read_text().splitlines()
    assert lines[:2] == ["# ours", "STREAMCELL_WORKERS=2"]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "ERROR: prom/prometheus:v3.5.0: not found"),
        ("{}", "no digest"),
        ("", "no digest"),
        ("[]", "no digest"),
        ('{"digest": "sha256:short"}', "no digest"),
        ('{"digest": 7}', "no digest"),
    ],
)
def test_without_an_answer_nothing_is_written(checkout, answer, says):
    """The line names the image; the file is as it was."""
    (checkout / ".env").write_text("PYTHON_IMAGE=kept\n")
    answers = {PINS["PYTHON_IMAGE"][0]: json.dumps({"digest": PINS["PYTHON_IMAGE"][1]})}
    docker_says(checkout, answers | ({} if answer is None else {PINS["PROMETHEUS_IMAGE"][0]: answer}))
    done = pin(checkout)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("prom/prometheus:v3.5.0: ")
    assert says in line
    assert (checkout / ".env").read_text() == "PYTHON_IMAGE=kept\n"


def test_without_docker(checkout):
    """A machine without docker is told so."""
    done = pin(checkout, path="/nowhere")
    assert done.returncode == 1
    assert "docker cannot be run" in done.stderr
    assert not (checkout / ".env").exists()


class TestFiles:
    """Every image that is not built here can be pinned, and is named alike in both files."""

    def test_no_image_has_a_fixed_name(self):
        """In compose a variable with a tag as its default; in the Dockerfile an argument of the same name."""
        spec = importlib.util.spec_from_file_location("pin_images", ROOT / "deploy" / "pin_images.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.images(COMPOSE)
        assert found == {name: tag for name, (tag, _) in PINS.items()}
        named = re.findall(r"^\s+image: (.+)$", COMPOSE, re.MULTILINE)
        assert [each for each in named if not each.startswith("${")] == ["streamcell:0.1.0"]
        arguments = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", DOCKERFILE, re.MULTILINE))
        assert arguments == {"PYTHON_IMAGE": found["PYTHON_IMAGE"]}
        assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}

    def test_a_tag_names_a_version(self):
        """Without a digest, a tag such as latest would be another image every week."""
        for tag, _ in PINS.values():
            assert re.search(r":v?\d+\.\d+", tag)
