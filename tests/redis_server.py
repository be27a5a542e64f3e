"""A Redis of the tests' own, on a free port, that keeps nothing."""

import contextlib
import random
import shutil
import socket
import subprocess
import threading

PROGRAM = shutil.which("redis-server")
MISSING = "redis-server is not installed"
BOUND_SECONDS = 30.0  # for what never takes long
# Below those that the system gives to connections: one of them could take the port of a server that is down.
PORTS = range(20_000, 32_000)


class RedisServer:
    """`redis-server` in a folder, on one port for good; it can be killed and started again."""

    def __init__(self, folder, *flags):
        self.port = free_port()
        self._arguments = [
            *(PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", *flags),
        ]
        self.start()

    def start(self):
        """Starts it, and returns when it takes connections: it says so in its log."""
        self.process = subprocess.Popen(self._arguments, stdout=subprocess.PIPE, text=True)
        watch = threading.Timer(BOUND_SECONDS, self.process.kill)
        watch.start()
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "eady to accept connections" in line:
                break
        watch.cancel()
        watch.join()
        if self.process.poll() is not None:
            raise AssertionError("redis-server ended: " + "".join(lines))

    def kill(self):
        """Ends it, as a crash would."""
        self.process.kill()
        self.process.wait(BOUND_SECONDS)
        self.process.stdout.close()

    def signal(self, number):
        """Sends a signal."""
        self.process.send_signal(number)

    def url(self, credentials="", options=""):
        """Returns a URL of it."""
        return f"redis://{credentials}127.0.0.1:{self.port}{options}"

    def command(self, *words, then=()):
        """Has it do something, and then perhaps another thing; returns the line that it answers last."""
        with socket.create_connection(("127.0.0.1", self.port), BOUND_SECONDS) as connection:
            lines = connection.makefile("rwb")
            for one in filter(None, (words, then)):
                lines.write(f"*{len(one)}\r\n".encode())
                for word in map(str, one):
                    lines.write(f"${len(word.encode())}\r\n{word}\r\n".encode())
                lines.flush()
                answer = lines.readline().decode().strip()
            lines.close()
        return answer


def free_port():
    """Returns a port of this machine that nobody listens on."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().choice(PORTS)))
            return probe.getsockname()[1]
