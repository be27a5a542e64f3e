"""Writes .env, by which Docker Compose takes each image by its digest: what was looked at is what runs.

Usage: pin_images.py, in a checkout, on a machine that reaches the images' registries. Asks `docker buildx
imagetools inspect` for the digest behind each tag of docker-compose.yml. Without one of them nothing changes.
"""

import json
import pathlib
import re
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[1]
# A variable with a tag as its default, as in ${PROMETHEUS_IMAGE:-prom/prometheus:v3.5.0}.
_IMAGE = re.compile(r"\$\{(\w+_IMAGE):-([^}@]+)\}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIMEOUT_SECONDS = 120


def images(compose: str) -> dict[str, str]:
    """Returns variable -> image, by its tag, of all images in a compose file's text."""
    return dict(_IMAGE.findall(compose))


def digest_of(image: str) -> str:
    """Returns the digest that a registry has for an image's tag, of all platforms together.

    Raises:
        ValueError: docker gives no digest; the message says why.
    """
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", image]
    try:
        done = subprocess.run(  # noqa: S603 (no shell, and the image is of this repository)
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except OSError as error:
        raise ValueError(f"docker cannot be run ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"no answer within {_TIMEOUT_SECONDS} s") from None
    if done.returncode:
        raise ValueError((done.stderr.strip() or f"status {done.returncode}").splitlines()[-1])
    try:
        digest = json.loads(done.stdout)["digest"]
    except (ValueError, KeyError, TypeError):
        digest = None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError("docker's answer has no digest")
    return digest


def with_pins(env: str, pins: dict[str, str]) -> str:
    """Returns the text of .env with a line for each variable; other lines stay as they are."""
    others = [line for line in env.splitlines() if line.split("=")[0].strip() not in pins]
    return "\n".join([*others, *(f"{name}={image}" for name, image in pins.items())]) + "\n"


def main() -> int:
    """Returns 0 if every image has its digest, else 1, with a line that says which has none."""
    pins = {}
    for name, image in images((_ROOT / "docker-compose.yml").read_text()).items():
        try:
            pins[name] = f"{image}@{digest_of(image)}"
        except ValueError as error:
            print(f"{image}: {error}; .env stays as it was", file=sys.stderr)
            return 1
        print(f"{name}={pins[name]}")
    path = _ROOT / ".env"
    path.write_text(with_pins(path.read_text() if path.exists() else "", pins))
    return 0


if __name__ == "__main__":
    sys.exit(main())
