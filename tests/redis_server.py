"""A Redis server of the tests' own, on a free port, which saves nothing to a disk."""

import contextlib
import random
import shutil
import socket
import subprocess
import threading

PROGRAM = shutil.which("redis-server")
MISSING = "redis-server is not installed"
BOUND_SECONDS = 30.0  # to start and to answer: never takes long, on a busy machine either
# Below the ports that the system gives to connections: a connection could take the port of a stopped server.
PORTS = range(20_000, 32_000)
NUM_PORTS = 5  # to try


class RedisServer:
    """`redis-server` in a folder. A test can kill the server and start it again on the same port."""

    def __init__(self, folder, *flags):
        where = ("--bind", "127.0.0.1", "--dir", str(folder))
        self._flags = (*where, "--save", "", "--appendonly", "no", *flags)
        for _ in range(NUM_PORTS - 1):
            self.port = free_port()
            with contextlib.suppress(AssertionError):  # a cluster also needs the port above by 10,000
                self.start()
                return
        self.port = free_port()
        self.start()

    def start(self):
        """Starts the server, and returns when its log says that the server takes connections."""
        arguments = [PROGRAM, "--port", str(self.port), *self._flags]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        watch = threading.Timer(BOUND_SECONDS, self.process.kill)
        watch.start()
        lines, is_ready = [], False
        for line in self.process.stdout:
            lines.append(line)
            if "eady to accept connections" in line:
                is_ready = True
                break
        watch.cancel()
        watch.join()
        if not is_ready:
            self.kill()
            raise AssertionError("redis-server ended: " + "".join(lines))

    def kill(self):
        """Ends the server, as a crash would."""
        self.process.kill()
        self.process.wait(BOUND_SECONDS)
        self.process.stdout.close()

    def signal(self, number):
        """Sends a signal to the server's process."""
        self.process.send_signal(number)

    def url(self, credentials="", options=""):
        """Returns a URL of the server."""
        return f"redis://{credentials}127.0.0.1:{self.port}{options}"

    def command(self, *words, then=()):
        """Sends a command, and another one if `then` is given. Returns the first line of the last answer."""
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
    """Returns a port of this machine that no process listens on."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().choice(PORTS)))
            return probe.getsockname()[1]
