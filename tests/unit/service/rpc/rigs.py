"""A router over methods that do what their requests say."""

from google.protobuf.wrappers_pb2 import StringValue

from service import errors
from service.errors import Reason
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.router import Router

SECRET = "the password is sealed"  # noqa: S105


class EchoConversation:
    """A conversation under the test's control: it records its calls and answers only when the test sends."""

    def __init__(self, stream):
        self.stream = stream
        self.calls = []

    def receive(self, raw):
        """Records a message, or raises what the message asks for."""
        if raw == b"refuse":
            raise errors.refusal(Reason.STEP_GAP, expected_step_index=1, got=2)
        if raw == b"break":
            raise RuntimeError(SECRET)
        self.calls.append(raw)

    def stop(self, error):
        """Records the call and ends the stream."""
        self.calls.append(("stop", error))
        self.stream.end(error)

    def cancel(self):
        """Records the call."""
        self.calls.append("cancel")


class RouterRig:
    """A router with an echoing stream and a unary method that does what its text says."""

    def __init__(
        self,
        max_message_bytes=100,
        max_stream_messages=2,
        max_active_calls=10,
        caller_of=None,
    ):
        self.errors, self.counts = [], []
        self.unary = Unary("/t/Unary", StringValue, self._answer)
        self.report = Unary("/t/Report", StringValue, self._answer, is_work=False)
        self.public = Unary("/t/Public", StringValue, self._answer, is_public=True)
        self.streaming = Streaming("/t/Stream", lambda stream, call: EchoConversation(stream))
        self.router = Router(
            [self.unary, self.report, self.public, self.streaming],
            max_message_bytes=max_message_bytes,
            max_stream_messages=max_stream_messages,
            count_error=lambda path, error: self.errors.append((path, error.reason)),
            count_streams=self.counts.append,
            caller_of=caller_of,
            max_active_calls=max_active_calls,
        )

    async def _answer(self, request, call):
        if request.value == "refuse":
            raise errors.refusal(Reason.OVERLOADED, queued_steps=9, retry_delay_seconds=1.25)
        if request.value == "break":
            raise RuntimeError(SECRET)
        return StringValue(value=f"{request.value} for {call.principal}")

    async def call(self, value):
        """Returns the unary answer's text."""
        raw = StringValue(value=value).SerializeToString()
        return StringValue.FromString(await self.router.answer(self.unary, raw, Call("me"))).value

    def open(self):
        """Returns a stream and its conversation."""
        stream = self.router.open(self.streaming, Call())
        return stream, stream.conversation
