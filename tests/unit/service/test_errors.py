"""The error table: complete, as in the proto, used as it is written; messages are of bounded size."""

import ast
import pathlib
import re
import typing

import pytest
from google.rpc import code_pb2

from service import errors
from service.errors import REASONS, Case, Code, Reason, StreamcellError

ROOT = pathlib.Path(__file__).parents[3]
PROTO = ROOT / "protos" / "streamcell" / "v1" / "streamcell.proto"
# The health service, channelz and the Open Inference Protocol answer with these; the proto has none.
OF_OTHER_SERVICES = {Reason.SERVICE_NOT_FOUND, Reason.CHANNELZ_NOT_FOUND, Reason.TIMED_OUT}
NEVER_SENT = {Reason.SESSION_EVICTED}
MESSAGES = [(reason, case) for reason, spec in REASONS.items() for case in spec.messages]


def message_of(reason, case):
    """Returns a message of the table."""
    return REASONS[reason].messages[case]


def made(reason, case, fact):
    """Returns the error with one value for every fact of its message."""
    facts = dict.fromkeys(message_of(reason, case).facts, fact)
    if "retry_delay_seconds" in facts:
        facts["retry_delay_seconds"] = 0.25
    return errors.refusal(reason, case, **facts)


def proto_table():
    """Returns reason -> code and the words after it, as the proto's header comment lists them."""
    header = PROTO.read_text().split("Reasons and codes:")[1].split("CANCELLED and DEADLINE_EXCEEDED")[0]
    rows = re.findall(r"^// {16}([A-Z_]+) +([A-Z_]+) ?(.*)", header, re.MULTILINE)
    return {reason: (code, words) for reason, code, words in rows}


class TestTable:
    """REASONS is complete, and consistent in itself."""

    def test_every_reason_has_its_row(self):
        """No reason is without a code, and every reason but the reserved one has a message."""
        assert set(REASONS) == set(Reason)
        assert {reason for reason, spec in REASONS.items() if not spec.messages} == NEVER_SENT

    def test_reasons_and_codes_are_the_protos(self):
        """Reasons and codes are those that the API's own documentation promises."""
        ours = {
            reason.value: spec.code.name
            for reason, spec in REASONS.items()
            if reason not in OF_OTHER_SERVICES
        }
        assert {reason: code for reason, (code, _) in proto_table().items()} == ours
        assert len(ours) == 24

    def test_the_proto_says_which_reasons_are_reserved(self):
        """A reason that is never sent is marked as reserved, and no other reason is."""
        reserved = {reason for reason, (_, words) in proto_table().items() if "reserved" in words}
        assert reserved == NEVER_SENT

    def test_codes_are_numbered_as_googles(self):
        """Each code has the number that google.rpc.Code gives its name."""
        assert {code.name: int(code) for code in Code} == {
            code.name: code_pb2.Code.Value(code.name) for code in Code
        }

    @pytest.mark.parametrize(("reason", "case"), MESSAGES)
    def test_every_error_can_be_made(self, reason, case):
        """The facts of a template are enough for the message, its metadata and its delay."""
        error = made(reason, case, 7)
        assert (error.reason, error.code) == (reason, REASONS[reason].code)
        assert set(error.metadata) == set(message_of(reason, case).metadata)
        assert "{" not in error.message
        assert str(error) == error.message

    @pytest.mark.parametrize(("reason", "case"), MESSAGES)
    def test_metadata_are_facts_of_the_message(self, reason, case):
        """A program is told no fact that people are not told."""
        assert set(message_of(reason, case).metadata) <= message_of(reason, case).facts

    def test_every_case_is_in_use(self):
        """No name of a case is without a message."""
        assert {case for _, case in MESSAGES} == set(typing.get_args(Case))


def reasons_in(node):
    """Returns the names of the reasons that an expression may give; None: it cannot be read."""
    if isinstance(node, ast.IfExp):
        return reasons_in(node.body) + reasons_in(node.orelse)
    return [node.attr] if isinstance(node, ast.Attribute) else [None]


def refusals():
    """Yields each call of `refusal` in the service: its place, reasons, case and the facts given."""
    for path in sorted((ROOT / "service").rglob("*.py")):
        if path.name == "errors.py" and path.parent.name == "service":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "errors.refusal":
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                case = ast.literal_eval(given.pop("case", ast.Constant("usual")))
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield pytest.param(reasons_in(node.args[0]), case, set(given), len(node.args), id=place)


CALLS = list(refusals())


class TestCallSites:
    """Calls in the service give the facts that the table wants: no type says which facts a reason takes."""

    @pytest.mark.parametrize(("reasons", "case", "facts", "num_positional"), CALLS)
    def test_a_call_gives_the_facts_of_its_message(self, reasons, case, facts, num_positional):
        """Each fact of the template is given by its name, and no other."""
        for reason in reasons:
            assert facts == message_of(Reason(reason), case).facts
        assert num_positional == 1

    def test_every_message_is_sent(self):
        """No message of the table is dead: each is sent, here or by a function of `errors` itself."""
        sent = {(Reason(reason), call.values[1]) for call in CALLS for reason in call.values[0]}
        sent |= {(errors.invalid_argument("x", "is odd").reason, "usual")}
        sent |= {(errors.session_ended(end).reason, "session_ended") for end in (None, Reason.SESSION_FENCED)}
        assert sent == set(MESSAGES)


ABOUT_CALLERS = [each for each in MESSAGES if "!r}" in message_of(*each).template]


class TestCallersTexts:
    """Statuses travel as headers: a caller's text comes back quoted and cut."""

    LONG = "ü" * 100_000

    @pytest.mark.parametrize(("reason", "case"), ABOUT_CALLERS)
    def test_long_texts_are_cut(self, reason, case):
        """What a caller sent comes back cut to 128 characters, in the message and in the metadata."""
        found = message_of(reason, case)
        callers = {name for name in found.facts if f"{{{name}!r}}" in found.template}
        facts = {name: self.LONG if name in callers else "a/1" for name in found.facts}
        error = errors.refusal(reason, case, **facts)
        assert len(error.message) < 500
        assert all(len(value) <= 128 for value in error.metadata.values())
        assert "…" in error.message

    @pytest.mark.parametrize("name", ["session_id", "asked"])
    def test_ids_and_models_that_were_asked_for_are_quoted_wherever_they_stand(self, name):
        """No template has a caller's text as it came."""
        assert not [each for each in MESSAGES if re.search(rf"{{{name}[^!]*}}", message_of(*each).template)]

    def test_a_text_cannot_break_a_message_into_lines(self):
        """Line ends and quotes are escaped."""
        assert "\n" not in errors.refusal(Reason.SESSION_NOT_FOUND, session_id="a\nb").message
        assert errors.brief("x" * 128) == repr("x" * 128)
        assert len(errors.brief("x" * 129)) == 128 + len("…''")

    def test_braces_in_a_fact_are_text(self):
        """A fact is filled in once: what looks like a fact within it stays as it is."""
        assert errors.invalid_argument("x", "{field}").message == "x: {field}"


class TestErrors:
    """An error tells people and machines what is wrong."""

    @pytest.mark.parametrize(
        ("error", "reason", "metadata", "says"),
        [
            (errors.invalid_argument("x", "is odd"), Reason.INVALID_ARGUMENT, {"field": "x"}, "x: is odd"),
            (
                errors.refusal(Reason.STEP_GAP, expected_step_index=5, got=9),
                Reason.STEP_GAP,
                {"expected_step_index": "5"},
                "step 5 next",
            ),
            (
                errors.refusal(Reason.STEP_CONFLICT, step_index=3),
                Reason.STEP_CONFLICT,
                {"step_index": "3"},
                "step_index 3",
            ),
            (
                errors.refusal(Reason.STEP_FORGOTTEN, step_index=3, expected_step_index=9),
                Reason.STEP_FORGOTTEN,
                {"expected_step_index": "9"},
                "step 9",
            ),
            (
                errors.refusal(Reason.SESSIONS_FULL, max_resident_sessions=7),
                Reason.SESSIONS_FULL,
                {"max_resident_sessions": "7"},
                "7 sessions",
            ),
            (
                errors.refusal(Reason.TOO_MANY_STEPS, got=9, max_message_steps=8),
                Reason.TOO_MANY_STEPS,
                {"max_message_steps": "8"},
                "the most is 8",
            ),
            (
                errors.refusal(Reason.MESSAGE_TOO_LARGE, got_bytes=9, max_message_bytes=8),
                Reason.MESSAGE_TOO_LARGE,
                {"max_message_bytes": "8"},
                "9 bytes",
            ),
            (
                errors.refusal(Reason.MODEL_CHANGED, session_id="s", asked="b", model="a/1"),
                Reason.MODEL_CHANGED,
                {"session_id": "s", "model": "a/1"},
                "on a/1",
            ),
            (
                errors.refusal(Reason.MODEL_NOT_FOUND, model="b", served="a"),
                Reason.MODEL_NOT_FOUND,
                {"model": "b"},
                "served: a",
            ),
            (errors.refusal(Reason.DRAINING), Reason.DRAINING, {}, "stopping"),
        ],
        ids=lambda value: value.reason if isinstance(value, StreamcellError) else "",
    )
    def test_an_error_tells_people_and_machines(self, error, reason, metadata, says):
        """Each error has its reason, the facts that a program may use, and a sentence with what is wrong."""
        assert (error.reason, error.metadata) == (reason, metadata)
        assert says in error.message
        assert error.code is REASONS[reason].code
        assert str(error) == error.message

    def test_an_error_says_when_to_come_again_where_waiting_helps(self):
        """OVERLOADED has the delay it was given, STORE_UNAVAILABLE half a second; few reasons have one."""
        overloaded = errors.refusal(Reason.OVERLOADED, queued_steps=8, retry_delay_seconds=0.25)
        assert overloaded.retry_delay_seconds == 0.25
        assert "0.25 s" in overloaded.message
        assert errors.refusal(Reason.STORE_UNAVAILABLE, problem="gone").retry_delay_seconds == 0.5
        waiting = {reason for reason, case in MESSAGES if made(reason, case, 7).retry_delay_seconds}
        assert waiting == {
            Reason.OVERLOADED,
            Reason.QUOTA_EXCEEDED,
            Reason.STORE_UNAVAILABLE,
            Reason.MODEL_NOT_HERE,
        }

    @pytest.mark.parametrize(
        ("end", "reason"),
        [
            (None, Reason.SESSION_NOT_FOUND),
            (Reason.SESSION_EXPIRED, Reason.SESSION_NOT_FOUND),
            (Reason.SESSION_FENCED, Reason.SESSION_FENCED),
        ],
    )
    def test_work_of_an_ended_session_says_how_the_session_ended(self, end, reason):
        """A session that another server took is told from one that was closed or expired."""
        assert errors.session_ended(end).reason is reason

    def test_a_wrong_fact_is_a_fault(self):
        """An error without its facts cannot be made, nor an error that is never sent."""
        with pytest.raises(KeyError, match="expected_step_index"):
            errors.refusal(Reason.STEP_GAP, got=9)
        with pytest.raises(KeyError, match="usual"):
            errors.refusal(Reason.SESSION_EVICTED)
