"""Principals that step as fast as they are answered, each on a connection of its own; one thread drives all.

Bare frames, so that a client's own work is small beside the server's. Does not know what is fair.
"""

import collections
import selectors
import socket

from streamcell.v1 import streamcell_pb2 as pb

from tests.attacks import attacks, frames

_PIECE_BYTES = 1 << 18
_WINDOW = (1 << 31) - 1
_INITIAL_WINDOW_SIZE = 4  # the number of a setting
_WAIT_SECONDS = 60.0


class Stepper:
    """A principal's connection, with streams on which so many steps are always unanswered.

    Args:
        token: the bearer token that names the principal.
        streams: the ids of each stream's sessions.
        num_unanswered: steps of a stream that wait for an answer.
    """

    def __init__(self, address, token, streams, num_unanswered):
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self.socket: socket.socket  # from `begin` on
        self.num_applied = 0
        self.errors = collections.Counter()  # by reason
        self._num_unanswered = num_unanswered
        self._messages = {
            number: [_message(session_id) for session_id in session_ids]
            for number, session_ids in zip(frames.streams(len(streams)), streams, strict=True)
        }
        self._turns = dict.fromkeys(self._messages, 0)
        self._answers = dict.fromkeys(self._messages, b"")
        self._silent = set(self._messages)  # the streams without an answer yet
        self._unread = b""
        self._block = frames.call_headers(
            attacks.STREAM, frames.literal(b"authorization", b"Bearer " + token.encode())
        )

    @property
    def is_served(self):
        """Whether every stream has had an answer."""
        return not self._silent

    def begin(self):
        """Connects, opens the streams and sends the first steps of each."""
        self.socket = socket.create_connection(self._address, timeout=_WAIT_SECONDS)
        settings = _INITIAL_WINDOW_SIZE.to_bytes(2, "big") + _WINDOW.to_bytes(4, "big")
        window = (_WINDOW - 65_535).to_bytes(4, "big")
        self.socket.sendall(
            frames.PREFACE
            + frames.frame(frames.SETTINGS, 0, 0, settings)
            + frames.frame(frames.WINDOW_UPDATE, 0, 0, window)
        )
        for number in self._messages:
            self.socket.sendall(
                frames.opened(number, self._block) + self._next_steps(number, self._num_unanswered)
            )

    def go_on(self):
        """Reads what has come and sends a step for each answer."""
        data = self.socket.recv(_PIECE_BYTES)
        assert data, "the server has closed the connection"
        num_answers = collections.Counter()
        sent = []
        for kind, flags, number, payload in self._frames(data):
            if kind == frames.DATA:
                num_answers[number] += self._take(number, payload)
            elif kind in (frames.SETTINGS, frames.PING) and not flags & frames.ACK:
                sent.append(frames.frame(kind, frames.ACK, 0, payload if kind == frames.PING else b""))
            else:
                assert kind not in (frames.RST_STREAM, frames.GOAWAY), (kind, payload)
        sent += [self._next_steps(*each) for each in num_answers.items()]
        self.socket.sendall(b"".join(sent))

    def close(self):
        """Closes the connection."""
        if hasattr(self, "socket"):
            self.socket.close()

    def _frames(self, data):
        """Returns the frames that are complete, as kind, flags, stream and payload."""
        data = self._unread + data
        found, at = [], 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if len(data) < end:
                break
            number = int.from_bytes(data[at + 5 : at + 9], "big")
            found.append((data[at + 3], data[at + 4], number, data[at + 9 : end]))
            at = end
        self._unread = data[at:]
        return found

    def _take(self, number, payload):
        """Counts the answers that are complete; returns how many."""
        data = self._answers[number] + payload
        count = at = 0
        while len(data) - at >= 5:
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            if len(data) < end:
                break
            response = pb.StreamResponse.FromString(data[at + 5 : end])
            if response.HasField("error"):
                self.errors[response.error.reason] += 1
            else:
                self.num_applied += 1
            count, at = count + 1, end
        if count:
            self._silent.discard(number)
        self._answers[number] = data[at:]
        return count

    def _next_steps(self, number, count):
        """Returns the stream's next steps, of its sessions in turn."""
        messages, turn = self._messages[number], self._turns[number]
        self._turns[number] = turn + count
        steps = (messages[each % len(messages)] for each in range(turn, turn + count))
        return frames.frame(frames.DATA, 0, number, b"".join(steps)) if count else b""


def _message(session_id):
    step = pb.StreamRequest(step=pb.StepRequest(session_id=session_id, x=[0.5]))
    data = step.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def drive(steppers, is_done):
    """Lets all step until `is_done` holds."""
    with selectors.DefaultSelector() as selector:
        for each in steppers:
            selector.register(each.socket, selectors.EVENT_READ, each)
        while not is_done():
            ready = selector.select(_WAIT_SECONDS)
            assert ready, "nobody was answered for a minute"
            for key, _ in ready:
                key.data.go_on()
