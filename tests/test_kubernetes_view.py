"""Who looks at an object sees what has become of its run, in plain words and usual conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from msgspec.structs import replace

import asteps
from asteps import Retry, Step
from asteps._store import Status, Summary
from asteps.integrations._kubernetes_view import status_view
from asteps.stores.kubernetes import Viewed
from asteps.stores.memory import MemoryStore
from asteps.testing import MockClock

ID = "default/shop"
AT = "2023-11-14T22:13:20Z"  # where a MockClock begins
EVIL = "\x1b[31mred\x1b[0m\u202e\n" + "long " * 100


def viewed(stored: asteps.StoredRun, status: Mapping[str, Any], id: str = ID) -> Viewed:
    """What a store shows to a view."""
    return Viewed(
        id=id,
        records=stored.records,
        summary=stored.summary,
        status=status,
        generation=7,
        uid="11-22",
    )


class Looked:
    """A store beside which the status is kept, as `StatusStore` keeps it: after each save.

    Attributes:
        status: The status as it is now.
        seen: What the columns showed after each save.
    """

    def __init__(self, status: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.inner = MemoryStore()
        self.status: dict[str, Any] = dict(status or {})
        self.seen: list[tuple[str, str, str, str]] = []
        self.view = status_view(**options)

    async def load(self, id: str, /) -> asteps.StoredRun | None:
        return await self.inner.load(id)

    async def save(self, id: str, changes: Mapping[str, bytes | None], /, **how: Any) -> str:
        revision = await self.inner.save(id, changes, **how)
        await self.look(id)
        return revision

    async def look(self, id: str = ID) -> None:
        stored = await self.inner.load(id)
        assert stored is not None
        self.status |= self.view(viewed(stored, dict(self.status), id))
        columns = tuple(self.status[name] for name in ("phase", "step", "progress", "message"))
        if not self.seen or self.seen[-1] != columns:
            self.seen.append(columns)

    async def delete(self, id: str, /, *, expected: str) -> None:
        await self.inner.delete(id, expected=expected)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def reconcile(
    fn: Callable[..., Any], store: Looked, clock: MockClock, id: str = ID, **how: Any
) -> asteps.Outcome[Any]:
    """One pass."""
    return await asteps.reconcile(fn, store=store, id=id, clock=clock, name="bring_up", **how)


def conditions(status: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Status, reason and time of each condition."""
    return {
        each["type"]: (each["status"], each["reason"], each["lastTransitionTime"])
        for each in status["conditions"]
    }


# --- phase, step, progress, message ---------------------------------------------------------------


async def test_a_run_from_its_beginning_to_its_end() -> None:
    """Each save shows where the run is: what works, what is waited for and why, how far it is."""
    clock = MockClock()
    store = Looked(observed_generation=7)
    ready = False

    async def boot(s: Step) -> None:
        if not ready:
            s.pending(after=30, why="the server boots")

    async def bring_up(s: Step) -> str:
        await s.call("network", clock.advance, 2)
        async with s.group("server") as g:
            g.call("disk", clock.advance, 3)
            g.do("boot", boot)
        await s.call("dns", clock.advance, 1)
        return "up"

    assert isinstance(await reconcile(bring_up, store, clock), asteps.Pending)
    clock.advance(30)
    ready = True
    assert isinstance(await reconcile(bring_up, store, clock), asteps.Done)
    assert store.seen == [
        ("Running", "", "", "at work"),
        ("Running", "network", "1/1", "network has ended"),
        ("Running", "server/boot", "1/2", "the server boots"),
        ("Running", "server/boot", "2/3", "the server boots"),
        ("Waiting", "server/boot", "2/3", "the server boots"),
        ("Running", "server/boot", "2/3", "the server boots"),
        ("Running", "server/boot", "3/3", "server/boot has ended"),
        ("Running", "dns", "4/4", "dns has ended"),
        ("Succeeded", "", "4/4", "done in 36.0 s"),
    ]
    assert store.status == {
        "phase": "Succeeded",
        "step": "",
        "progress": "4/4",
        "message": "done in 36.0 s",
        "observedGeneration": 7,
        "conditions": [
            {
                "type": type,
                "status": holds,
                "reason": "Succeeded",
                "message": "done in 36.0 s",
                "observedGeneration": 7,
                "lastTransitionTime": since,
            }
            for type, holds, since in (
                ("Ready", "True", "2023-11-14T22:13:56Z"),
                ("Reconciling", "False", "2023-11-14T22:13:56Z"),
                ("Stalled", "False", AT),
            )
        ],
    }


async def test_a_failure_names_the_step_where_it_began() -> None:
    """A failed run shows the deepest step that failed first, what it said, and how many failed."""
    clock = MockClock()
    store = Looked()

    def fail(text: str) -> None:
        raise OSError(text)

    async def bring_up(s: Step) -> None:
        async with s.group("server", limit=1) as g:
            g.call("disk", fail, "no space")
            g.call("boot", fail, "no image")

    assert isinstance(await reconcile(bring_up, store, clock), asteps.Failed)
    assert store.seen[-1] == (
        "Failed",
        "server/disk",
        "0/2",
        "OSError: no space (and 1 more failed)",
    )
    assert conditions(store.status) == {
        "Ready": ("False", "StepFailed", AT),
        "Reconciling": ("False", "StepFailed", AT),
        "Stalled": ("True", "StepFailed", AT),
    }


async def test_a_retry_says_what_went_wrong() -> None:
    """A step whose attempt failed shows why, and that another one follows."""
    clock = MockClock()
    store = Looked()

    def fail() -> None:
        raise TimeoutError("no answer")

    async def bring_up(s: Step) -> None:
        await s.call("dns", fail, retry=Retry(attempts=3, delay=60, jitter=0))

    assert isinstance(await reconcile(bring_up, store, clock), asteps.Pending)
    message = "TimeoutError: no answer (attempt 2 follows)"
    assert store.seen[1:] == [
        ("Running", "dns", "0/1", message),
        ("Waiting", "dns", "0/1", message),
    ]
    assert conditions(store.status)["Reconciling"] == ("True", "Waiting", AT)


async def test_of_many_that_wait_the_first_is_named() -> None:
    """Of several waiting steps the one that is due first is shown; the others are counted."""
    clock = MockClock()
    store = Looked()

    async def wait(s: Step, item: int) -> None:
        s.pending(after=100 - item)

    async def bring_up(s: Step) -> None:
        await s.map("disks", wait, range(12))

    await reconcile(bring_up, store, clock)
    assert store.seen[-1] == (
        "Waiting",
        "disks/11",
        "0/12",
        "waits for its time (and 11 more waiting)",
    )


async def test_what_is_at_work_is_shown() -> None:
    """While steps work side by side, the one that began last is shown once a save knows of it."""
    clock = MockClock()
    store = Looked()

    async def copy(s: Step) -> None:
        clock.advance(1)
        await s.save_info("half")
        clock.advance(1)

    async def bring_up(s: Step) -> None:
        await s.do("copy", copy)

    await reconcile(bring_up, store, clock)
    assert store.seen == [
        ("Running", "", "", "at work"),
        ("Running", "copy", "0/1", "at work"),
        ("Running", "copy", "1/1", "copy has ended"),
        ("Succeeded", "", "1/1", "done in 2.00 s"),
    ]


async def test_what_an_operator_puts_right_is_pending() -> None:
    """A failed run that was recovered is Pending, and nothing stalls it, until a pass goes on."""
    clock = MockClock()
    store = Looked()
    broken = True

    def work() -> None:
        if broken:
            raise OSError("no space")

    async def bring_up(s: Step) -> None:
        await s.call("disk", work)

    await reconcile(bring_up, store, clock)
    async with asteps.edit_run(store, ID) as state:
        state.recover()
    assert store.seen[-1][0] == "Pending"
    assert {type: each[:2] for type, each in conditions(store.status).items()} == {
        "Ready": ("False", "Pending"),
        "Reconciling": ("True", "Pending"),
        "Stalled": ("False", "Pending"),
    }
    broken = False
    await reconcile(bring_up, store, clock)
    assert store.status["phase"] == "Succeeded"


async def test_what_fails_after_the_end_is_told() -> None:
    """A run that is done says so also where what runs after its end has failed, and says that."""
    clock = MockClock()
    store = Looked()

    async def end(s: Step) -> None:
        raise OSError("no mail")

    async def bring_up(s: Step) -> None:
        await s.call("disk", clock.advance, 1)

    await reconcile(bring_up, store, clock, on_end=end)
    assert store.seen[-1][0] == "Succeeded"
    assert store.seen[-1][3] == "done, but $end failed: OSError: no mail"


# --- the clean-up ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "namespaced", "deleting"),
    [
        ("default/shop/cleanup", True, True),
        ("default/cleanup", True, False),  # an object of that name
        ("shop/cleanup", False, True),
        ("cleanup", False, False),
    ],
)
async def test_a_cleanup_is_deleting(id: str, namespaced: bool, deleting: bool) -> None:
    """The run of a clean-up, and no other, shows Deleting: while it waits, and when it is done."""
    clock = MockClock()
    store = Looked(namespaced=namespaced)
    ready = False

    async def bring_down(s: Step) -> None:
        if not ready:
            s.pending(after=5, why="the server stops")

    await reconcile(bring_down, store, clock, id)
    ready = True
    clock.advance(5)
    await reconcile(bring_down, store, clock, id)
    phases = [(phase, message) for phase, _, _, message in store.seen]
    assert phases[:2] == [
        ("Deleting" if deleting else "Running", "at work"),
        ("Deleting" if deleting else "Waiting", "the server stops"),
    ]
    assert phases[-1] == ("Deleting" if deleting else "Succeeded", "done in 5.00 s")
    assert conditions(store.status)["Ready"][0] == ("False" if deleting else "True")


async def test_a_cleanup_that_fails_is_stalled() -> None:
    """A clean-up that failed is still Deleting, and Stalled says that nothing goes on."""
    clock = MockClock()
    store = Looked()

    async def bring_down(s: Step) -> None:
        raise OSError("it does not go away")

    await reconcile(bring_down, store, clock, f"{ID}/cleanup")
    assert store.seen[-1] == ("Deleting", "", "", "OSError: it does not go away")
    assert conditions(store.status) == {
        "Ready": ("False", "StepFailed", AT),
        "Reconciling": ("False", "StepFailed", AT),
        "Stalled": ("True", "StepFailed", AT),
    }


# --- conditions -----------------------------------------------------------------------------------

FOREIGN: list[Any] = [
    {"type": "Backed-up", "status": "Unknown", "owner": {"x": [1]}},
    {"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z", "old": 1},
    "no condition at all",
    {"status": "False"},
    {"type": "Ready/disk", "status": "True"},
]


async def test_conditions_of_others_are_kept() -> None:
    """Foreign conditions stay as they are, in their places; ours take theirs, or come last."""
    store = Looked({"conditions": FOREIGN, "observedGeneration": 3, "elsewhere": 1})

    async def bring_up(s: Step) -> None:
        s.pending(after=5)

    await reconcile(bring_up, store, MockClock())
    found = store.status["conditions"]
    ours = ("Ready", "Reconciling", "Stalled")
    mine = [each for each in found if isinstance(each, dict) and each.get("type") in ours]
    assert [each for each in found if each not in mine] == [FOREIGN[0], *FOREIGN[2:]]
    assert found.index(mine[0]) == 1
    assert mine == [
        {
            "type": type,
            "status": holds,
            "reason": "Waiting",
            "message": "waits for its time",
            "observedGeneration": 3,
            "lastTransitionTime": since,
        }
        for type, holds, since in (
            ("Ready", "False", "2020-01-01T00:00:00Z"),
            ("Reconciling", "True", AT),
            ("Stalled", "False", AT),
        )
    ]
    assert (store.status["elsewhere"], store.status["observedGeneration"]) == (1, 3)


async def test_conditions_that_are_none_are_let_be() -> None:
    """Where the status calls something else `conditions`, that is not overwritten."""
    store = Looked({"conditions": {"mine": True}})

    async def bring_up(s: Step) -> None: ...

    await reconcile(bring_up, store, MockClock())
    assert store.status["conditions"] == {"mine": True}
    assert store.status["phase"] == "Succeeded"


# --- what may come --------------------------------------------------------------------------------


async def test_no_text_is_long_or_evil() -> None:
    """A message is at most 200 columns wide, and no text has a character that controls anything."""
    store = Looked()

    async def bring_up(s: Step) -> None:
        async def fails(c: Step) -> None:
            raise OSError(EVIL)

        await s.do("\u202estep", fails)

    await reconcile(bring_up, store, MockClock())
    assert store.status["step"] == "\\u202estep"
    message = store.status["message"]
    assert message.startswith("OSError: \\x1b[31mred\\x1b[0m\\u202e\\nlong long")
    assert len(message) == 200


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("proceeding", "Running"),
        ("pending", "Waiting"),
        ("done", "Succeeded"),
        ("failed", "Failed"),
    ],
)
@pytest.mark.parametrize("records", [{}, {"": b"{}"}, {"": b"\xff"}, {"a": b"1"}])
def test_records_of_others(status: Status, phase: str, records: Mapping[str, bytes]) -> None:
    """Records that are no tree of asteps are told of by their summary alone."""
    summary = Summary("f", status, 1, None, 1_700_000_000.0, 1_700_000_000.0)
    stored = asteps.StoredRun(dict(records), "1", summary)
    told = status_view()(viewed(stored, {}))
    columns = {name: told[name] for name in ("phase", "step", "progress", "message")}
    assert columns == {"phase": phase, "step": "", "progress": "", "message": ""}


async def test_the_same_save_gives_the_same_status() -> None:
    """The view knows no time but the save's own: asked again, it says the same."""
    store = Looked()

    async def bring_up(s: Step) -> None:
        s.pending(after=5)

    await reconcile(bring_up, store, MockClock())
    before = dict(store.status)
    await store.look()
    assert store.status == before
    stored = await store.inner.load(ID)
    assert stored is not None
    later = stored._replace(summary=replace(stored.summary, updated_at=1_700_000_100.0))
    assert status_view()(viewed(later, before))["conditions"] == before["conditions"]
