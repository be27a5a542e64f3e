"""What both stores promise: who may claim a row, whose writes are done, and what a row has afterwards."""

import asyncio
import contextlib
import dataclasses

import pytest

from service.store.base import (
    WRITTEN,
    Claim,
    Claimed,
    ClaimStatus,
    Write,
    WriteKind,
    WriteOutcome,
    WriteStatus,
)
from service.store.redis import RedisStore
from service.store.sqlite import SqliteStore
from tests.redis_server import BOUND_SECONDS

NOW = 1_700_000_000.123456
ODD_KEYS = ["alice\0s", "", "'; DROP TABLE sessions; --", "ü\U0001f600\r\n$5", "{a}" * 200, "streamcell:used"]


@pytest.fixture(params=["sqlite", "redis"])
async def make(request, tmp_path):
    """Makes open stores, on one file or on one server. `make(clock=...)` sets a store's time."""
    if request.param == "redis":
        url = request.getfixturevalue("empty_redis").url()
    async with contextlib.AsyncExitStack() as stack:

        async def made(clock=lambda: NOW):
            if request.param == "redis":
                store = RedisStore(url, clock=clock, timeout_seconds=BOUND_SECONDS)
            else:
                path = tmp_path / "a folder" / "s?.db"
                store = SqliteStore(path, clock=clock, busy_seconds=BOUND_SECONDS)
            stack.push_async_callback(store.close)
            await store.open()
            return store

        (tmp_path / "a folder").mkdir()
        yield made


def opening(key):
    """Returns a claim such as OpenSession makes."""
    return Claim(key, may_create=True, may_find=True, may_take_over=True)


def finding(key):
    """Returns a claim such as a step without an index makes."""
    return Claim(key, may_create=False, may_find=True, may_take_over=False)


def asking(key):
    """Returns a claim that asks another owner for its row."""
    return dataclasses.replace(finding(key), asks=True)


async def heard(owner, other, *claims):
    """Returns the keys that an owner hears while another one makes claims again and again, as servers do."""
    keys = set()
    async with asyncio.timeout(BOUND_SECONDS):
        while not keys >= {one.key for one in claims}:
            listening = asyncio.create_task(owner.asked_for())
            await other.claim(claims)
            keys |= set(await listening)
    return keys


def save(key, epoch, record=b"r", used_at=NOW):
    """Returns a save of a row."""
    return Write(WriteKind.SAVE, key, epoch, record, used_at)


def release(key, epoch, record=b"r", used_at=NOW):
    """Returns a release of a row."""
    return Write(WriteKind.RELEASE, key, epoch, record, used_at)


def verify(key, epoch):
    """Returns a verification of a row."""
    return Write(WriteKind.VERIFY, key, epoch, None, 0.0)


def delete(key, epoch):
    """Returns a deletion of a row."""
    return Write(WriteKind.DELETE, key, epoch, None, 0.0)


async def claim(store, one):
    """Returns the outcome of a single claim."""
    (outcome,) = await store.claim([one])
    return outcome


async def write(store, one):
    """Returns whether a single write was done."""
    (written,) = await store.write([one])
    return written == WRITTEN


async def done(store, writes):
    """Returns whether each of several writes was done."""
    return [written == WRITTEN for written in await store.write(writes)]


class TestClaims:
    """A claim creates a row, takes a row, or is told why not."""

    async def test_a_row_is_created_once(self, make):
        """A claim that may create makes a missing row, at epoch 1, with the store's time."""
        store = await make()
        assert await claim(store, finding("a")) == Claimed(ClaimStatus.MISSING)
        assert await claim(store, opening("a")) == Claimed(ClaimStatus.CREATED, 1, None, NOW)
        only_create = Claim("a", may_create=True, may_find=False, may_take_over=True)
        assert await claim(store, only_create) == Claimed(ClaimStatus.EXISTS)
        with_record = Claim("b", may_create=True, may_find=False, may_take_over=False, record=b"first")
        assert await claim(store, with_record) == Claimed(ClaimStatus.CREATED, 1, b"first", NOW)
        assert await claim(store, finding("b")) == Claimed(ClaimStatus.TAKEN, 2, b"first", NOW)
        assert await write(store, save("a", 1)), "a claim that did not find the row changed nothing"

    async def test_a_store_takes_its_own_row_again(self, make):
        """The owner may claim its own row, which raises the epoch and fences the owner's earlier writes."""
        store = await make()
        await store.claim([opening("a")])
        assert await write(store, save("a", 1, b"first", 5.5))
        assert await claim(store, finding("a")) == Claimed(ClaimStatus.TAKEN, 2, b"first", 5.5)
        assert not await write(store, save("a", 1))
        assert await write(store, save("a", 2))

    async def test_another_owners_row_is_taken_over_only_on_purpose(self, make):
        """Without may_take_over nothing changes; with it all writes of the former owner are fenced."""
        ours, theirs = await make(), await make()
        await theirs.claim([opening("a")])
        await theirs.write([save("a", 1, b"theirs", 7.0)])
        assert await claim(ours, finding("a")) == Claimed(ClaimStatus.OWNED_ELSEWHERE, 1)
        assert await write(theirs, save("a", 1, b"more", 8.0))
        assert await claim(ours, opening("a")) == Claimed(ClaimStatus.TAKEN, 2, b"more", 8.0)
        for epoch in (1, 2):
            late = [save("a", epoch, b"late"), release("a", epoch, b"late"), delete("a", epoch)]
            assert await done(theirs, late) == [False] * 3
        assert await claim(ours, finding("a")) == Claimed(ClaimStatus.TAKEN, 3, b"more", 8.0)

    async def test_a_released_row_is_for_everyone(self, make):
        """Any store may take a released row, with record and epoch; the former owner writes no more."""
        ours, theirs = await make(), await make()
        await theirs.claim([opening("a")])
        assert await write(theirs, release("a", 1, b"left", 9.0))
        assert await done(theirs, [save("a", 1), delete("a", 1)]) == [False, False]
        assert await claim(ours, finding("a")) == Claimed(ClaimStatus.TAKEN, 2, b"left", 9.0)
        assert await claim(theirs, finding("a")) == Claimed(ClaimStatus.OWNED_ELSEWHERE, 2)

    @pytest.mark.parametrize("is_released", [False, True])
    async def test_a_row_created_again_refuses_its_former_owner(self, make, is_released):
        """A row under the same key refuses the former row's owner, even when released."""
        ours, theirs = await make(), await make()
        await theirs.claim([opening("a")])
        await ours.claim([opening("a")])
        assert await write(ours, delete("a", 2))
        assert await claim(ours, opening("a")) == Claimed(ClaimStatus.CREATED, 3, None, NOW)
        assert await write(ours, (release if is_released else save)("a", 3, b"ours"))
        assert await done(theirs, [save("a", 1), release("a", 1), delete("a", 1)]) == [False] * 3
        assert (await claim(ours, finding("a"))).record == b"ours"


class TestAsking:
    """An owner hears which rows others ask for, and a dead owner's rows are for whoever asks."""

    async def test_a_living_owner_hears_what_is_asked(self, make):
        """The claim changes nothing; the owner is told the key, as often as a claim asks since."""
        ours, theirs = await make(), await make()
        await theirs.claim([opening(key) for key in ("a", "b", *ODD_KEYS)])
        assert await claim(ours, finding("b")) == Claimed(ClaimStatus.OWNED_ELSEWHERE, 1)
        assert await heard(theirs, ours, asking("a")) == {"a"}
        assert await heard(theirs, ours, *map(asking, ODD_KEYS)) == set(ODD_KEYS)
        assert await claim(ours, asking("a")) == Claimed(ClaimStatus.OWNED_ELSEWHERE, 1)
        assert await write(theirs, release("a", 1))
        assert await claim(ours, asking("a")) == Claimed(ClaimStatus.TAKEN, 2, b"r", NOW)

    async def test_what_was_asked_is_forgotten_with_the_answer(self, make):
        """The next owner of a row is not asked what the former one was."""
        ours, theirs, third = await make(), await make(), await make()
        await theirs.claim([opening("a"), opening("b")])
        await claim(ours, asking("a"))
        assert await write(theirs, release("a", 1))
        await claim(ours, asking("a"))
        await claim(ours, opening("b"))
        assert await heard(ours, third, asking("b")) == {"b"}

    async def test_the_rows_of_a_closed_store_are_for_whoever_asks(self, make):
        """At once. A claim that does not ask still leaves them to an owner who might be alive."""
        ours, theirs = await make(), await make()
        await theirs.claim([opening("a")])
        await theirs.write([save("a", 1, b"theirs", 7.0)])
        assert await claim(ours, asking("a")) == Claimed(ClaimStatus.OWNED_ELSEWHERE, 1)
        await theirs.close()
        assert await claim(ours, finding("a")) == Claimed(ClaimStatus.OWNED_ELSEWHERE, 1)
        assert await claim(ours, asking("a")) == Claimed(ClaimStatus.TAKEN, 2, b"theirs", 7.0)


class TestSequences:
    """A call takes many rows, and calls may overlap."""

    async def test_a_sequence_is_handled_in_order(self, make):
        """A key may come several times in one call: each time the row is as the time before left it."""
        store = await make()
        outcomes = await store.claim([finding("a"), opening("a"), opening("b"), finding("a"), opening("a")])
        assert [one.status.name for one in outcomes] == ["MISSING", "CREATED", "CREATED", "TAKEN", "TAKEN"]
        assert [one.epoch for one in outcomes] == [0, 1, 1, 2, 3]
        of_a = [save("a", 3, b"1"), save("a", 3, b"2")]
        of_b = [delete("b", 1), save("b", 1)]
        released = [release("a", 3, b"3"), save("a", 3, b"4")]
        were_done = await done(store, [*of_a, *of_b, *released])
        assert were_done == [True, True, True, False, True, False]
        assert await claim(store, finding("a")) == Claimed(ClaimStatus.TAKEN, 4, b"3", NOW)

    async def test_many_rows_at_once(self, make):
        """In one call with hundreds of rows, owned, taken over, released or deleted, each has its outcome."""
        ours, theirs = await make(), await make()
        keys = [f"k{number}" for number in range(350)]
        fates = dict(zip(keys, ["ours", "theirs", "released", "gone", "deleted"] * 70, strict=True))
        await ours.claim([opening(key) for key in keys])
        await theirs.claim([opening(key) for key in keys if fates[key] == "theirs"])
        await ours.write([release(key, 1) for key in keys if fates[key] == "released"])
        await ours.write([delete(key, 1) for key in keys if fates[key] == "gone"])
        writes = [
            delete(key, 1) if fates[key] == "deleted" else save(key, 1, key.encode(), float(number))
            for number, key in enumerate(keys)
        ]
        assert await done(ours, writes) == [fates[key] in ("ours", "deleted") for key in keys]
        found = await theirs.claim([finding(key) for key in keys])
        wanted = {
            "ours": ClaimStatus.OWNED_ELSEWHERE, "theirs": ClaimStatus.TAKEN, "released": ClaimStatus.TAKEN,
            "gone": ClaimStatus.MISSING, "deleted": ClaimStatus.MISSING,
        }  # fmt: skip
        assert [one.status for one in found] == [wanted[fates[key]] for key in keys]
        found = await ours.claim([opening(key) for key in keys if fates[key] == "ours"])
        assert [one.record for one in found] == [key.encode() for key in keys if fates[key] == "ours"]

    async def test_calls_may_overlap(self, make):
        """Several stores create the same rows at the same time: one store alone creates each row."""
        stores = [await make() for _ in range(3)]
        only_create = [Claim(f"k{number}", True, False, False) for number in range(20)]
        calls = [store.claim([one]) for store in stores for one in only_create]
        outcomes = [outcome for (outcome,) in await asyncio.gather(*calls)]
        assert sum(outcome.status is ClaimStatus.CREATED for outcome in outcomes) == 20
        assert sum(outcome.status is ClaimStatus.EXISTS for outcome in outcomes) == 40

    async def test_empty_sequences_have_empty_answers(self, make):
        """Empty sequences return empty lists, and `check` raises nothing while the store works."""
        store = await make()
        assert (await store.claim([]), await store.write([])) == ([], [])
        await store.check()


class TestWrites:
    """What a write leaves in a row."""

    async def test_writes_can_be_repeated(self, make):
        """A caller that lost the reply may write again, with the same outcome, until the row is claimed."""
        ours, theirs = await make(), await make()
        await ours.claim([opening("a"), opening("b")])
        assert [await write(ours, save("a", 1)) for _ in range(2)] == [True, True]
        assert [await write(ours, release("a", 1, b"end")) for _ in range(2)] == [True, True]
        assert [await write(ours, delete("b", 1)) for _ in range(2)] == [True, False]
        assert (await claim(theirs, finding("a"))).record == b"end"
        assert not await write(ours, release("a", 1, b"again"))
        assert (await claim(theirs, finding("a"))).record == b"end"

    @pytest.mark.parametrize(
        "record", [b"", b"\0\xff\r\n", bytes(range(256)) * 8192], ids=["empty", "odd", "2 MiB"]
    )
    async def test_records_and_times_come_back_as_they_were(self, make, record):
        """Every byte of a record and every bit of an instant come back, after an earlier record too."""
        store = await make()
        await store.claim([opening(key) for key in ODD_KEYS])
        instants = [0.1 + number / 3 for number in range(len(ODD_KEYS))]
        assert all(await done(store, [save(key, 1, b"before") for key in ODD_KEYS]))
        writes = [save(key, 1, record, at) for key, at in zip(ODD_KEYS, instants, strict=True)]
        assert all(await done(store, writes))
        found = await store.claim([finding(key) for key in ODD_KEYS])
        assert found == [Claimed(ClaimStatus.TAKEN, 2, record, at) for at in instants]

    async def test_rows_outlive_their_store(self, make):
        """A store made later finds what was written. Opening a store changes nothing."""
        store = await make()
        await store.claim([opening("a")])
        await store.write([save("a", 1, b"kept")])
        await store.close()
        await store.close()
        later = await make()
        assert await claim(later, finding("a")) == Claimed(ClaimStatus.OWNED_ELSEWHERE, 1)
        assert await claim(later, opening("a")) == Claimed(ClaimStatus.TAKEN, 2, b"kept", NOW)

    async def test_a_release_without_a_record_leaves_the_row_as_it_was(self, make):
        """Record and last use stay, so that a drain need not write what the store has."""
        ours, theirs = await make(), await make()
        await ours.claim([opening("a")])
        assert await write(ours, save("a", 1, b"stored", 5.5))
        assert await write(ours, release("a", 1, None, 99.0))
        assert await claim(theirs, finding("a")) == Claimed(ClaimStatus.TAKEN, 2, b"stored", 5.5)


class TestRefusals:
    """A write that is not done says whether the row is gone or somebody else's."""

    async def test_a_row_that_is_gone(self, make):
        """Nobody deleted it, as far as the store remembers: it was lost."""
        store = await make()
        assert await store.write([save("a", 7), verify("a", 7)]) == [WriteOutcome(WriteStatus.GONE)] * 2

    async def test_a_row_of_another_owner_or_epoch(self, make):
        """The outcome has the row's epoch, by which the older of two owners is told."""
        ours, theirs = await make(), await make()
        await ours.claim([opening("a")])
        await theirs.claim([opening("a")])
        late = [save("a", 1), release("a", 1), delete("a", 1), verify("a", 1)]
        assert await ours.write(late) == [WriteOutcome(WriteStatus.NOT_OWNED, 2)] * 4
        assert await theirs.write([verify("a", 2), release("a", 2)]) == [WRITTEN] * 2
        assert (
            await theirs.write([save("a", 2), verify("a", 2)]) == [WriteOutcome(WriteStatus.NOT_OWNED, 2)] * 2
        )

    async def test_a_row_of_the_same_owner_at_another_epoch(self, make):
        """The owner is told so: a claim whose reply was lost has raised the epoch, not another owner."""
        store = await make()
        await store.claim([opening("a"), opening("a")])
        late = [save("a", 1), release("a", 1), delete("a", 1), verify("a", 1), save("a", 3)]
        assert await store.write(late) == [WriteOutcome(WriteStatus.NOT_OWNED, 2, is_own=True)] * 5

    async def test_a_verification_changes_nothing(self, make):
        """The row has its record, owner and epoch afterwards."""
        ours, theirs = await make(), await make()
        await ours.claim([opening("a")])
        await ours.write([save("a", 1, b"r", 5.5)])
        assert await ours.write([verify("a", 1)]) == [WRITTEN]
        assert await claim(theirs, finding("a")) == Claimed(ClaimStatus.OWNED_ELSEWHERE, 1)
        assert await claim(theirs, opening("a")) == Claimed(ClaimStatus.TAKEN, 2, b"r", 5.5)


class TestEpochs:
    """An epoch never falls."""

    async def test_a_claim_may_name_the_least_epoch(self, make):
        """A row that is made anew, or that fell back to an older copy, gets at least that."""
        ours, theirs = await make(), await make()
        above = dataclasses.replace(opening("a"), least_epoch=7)
        assert await claim(ours, above) == Claimed(ClaimStatus.CREATED, 7, None, NOW)
        assert await write(ours, save("a", 7, b"r"))
        assert (await claim(theirs, above)).epoch == 8
        assert (await claim(ours, dataclasses.replace(above, least_epoch=20))).epoch == 20
        assert await theirs.write([save("a", 8)]) == [WriteOutcome(WriteStatus.NOT_OWNED, 20)]

    async def test_a_claim_may_name_the_most_epoch(self, make):
        """A row above it is left as it is, and so is the remembered deletion of one."""
        ours, theirs = await make(), await make()
        await ours.claim([opening("a")])
        at_most = [dataclasses.replace(opening("a"), most_epoch=most) for most in (1, 2)]
        assert (await claim(theirs, at_most[0])).epoch == 2
        assert await claim(ours, at_most[0]) == Claimed(ClaimStatus.NEWER, 2)
        assert await theirs.write([verify("a", 2), delete("a", 2)]) == [WRITTEN] * 2
        assert await claim(ours, at_most[0]) == Claimed(ClaimStatus.NEWER, 2)
        assert await claim(ours, finding("a")) == Claimed(ClaimStatus.MISSING)
        assert await claim(ours, at_most[1]) == Claimed(ClaimStatus.CREATED, 3, None, NOW)

    @pytest.mark.parametrize("by", ["a close", "expiry"])
    async def test_the_end_of_a_row_that_had_several_owners_is_remembered(self, make, by):
        """An earlier owner's copy is told the epoch of the end, and a new row of the key begins above."""
        ours, theirs = await make(), await make()
        await ours.claim([opening("a")])
        await theirs.claim([opening("a")])
        if by == "expiry":
            assert await theirs.expire(NOW + 1, 9) == ["a"]
        else:
            assert await theirs.write([delete("a", 2)]) == [WRITTEN]
        assert await ours.write([save("a", 1)]) == [WriteOutcome(WriteStatus.GONE, 2)]
        assert await claim(ours, finding("a")) == Claimed(ClaimStatus.MISSING)
        assert (await claim(ours, opening("a"))).epoch == 3
        assert await ours.write([delete("a", 3), save("a", 3)]) == [
            WRITTEN,
            WriteOutcome(WriteStatus.GONE, 3),
        ]

    async def test_the_end_of_a_row_of_one_owner_leaves_nothing(self, make):
        """Nobody else can have a copy; a server that opens and closes many sessions fills no store."""
        store = await make()
        await store.claim([opening("a")])
        assert await store.write([delete("a", 1), save("a", 1)]) == [WRITTEN, WriteOutcome(WriteStatus.GONE)]


class TestExpiry:
    """A store deletes idle rows."""

    async def test_idle_rows_expire_the_longest_idle_first(self, make):
        """Rows of any owner last used before an instant go, up to a number, far instants included."""
        ours, theirs = await make(), await make()
        instants = {"a": -1e9, "b": 10.0, "c": 10.5, "d": 11.0, "e": 1e12}
        await ours.claim([opening(key) for key in instants])
        await ours.write(
            [(release if key == "b" else save)(key, 1, b"r", at) for key, at in instants.items()]
        )
        assert await theirs.expire(10.0, 9) == ["a"]
        assert await theirs.expire(11.0, 1) == ["b"]
        assert await theirs.expire(11.0, 9) == ["c"]
        assert await theirs.expire(11.0, 9) == []
        assert await theirs.expire(2e12, 0) == []
        assert await done(ours, [save("a", 1), save("d", 1)]) == [False, True]
        assert await claim(ours, opening("c")) == Claimed(ClaimStatus.CREATED, 1, None, NOW)

    async def test_odd_keys_expire_by_hundreds(self, make):
        """More rows expire than one statement takes, and their keys come back as they were."""
        store = await make(clock=lambda: 5.0)
        keys = ODD_KEYS + [f"k{number}" for number in range(250)]
        await store.claim([opening(key) for key in keys])
        first = await store.expire(6.0, 150)
        assert len(first) == 150
        assert set(first + await store.expire(6.0, 1000)) == set(keys)
