"""The state tree: what a node says of itself, how it is found, kept, and changed by operators."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asteps
from asteps import DuplicateStepError, State, Step, UsageError
from asteps._codec import assemble, encode_record, snapshot, tree_as_records
from asteps._paths import escape, join, split
from asteps._state import ABSENT, Detail, RunRecord

T0 = "2024-02-29T12:00:00Z"
T1 = "2024-02-29T12:00:01.5Z"
LATER = "2024-02-29T13:00:00Z"


def node(name: str, *states: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """One node of a document."""
    return {"name": name, **keys, **({"states": list(states)} if states else {})}


def done(name: str, *states: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A step that returned."""
    return node(name, *states, startedAt=T0, doneAt=T1, **{"result": 1, **keys})


def failed(
    name: str, *states: dict[str, Any], causes: tuple[str, ...] = (), **detail: Any
) -> dict[str, Any]:
    """A step that failed for good, because of these children."""
    failure = {"message": f"{name} broke", "types": ["builtins.OSError"], "causes": causes}
    own = {"attempt": 3, "interruptions": 2, "failure": failure, **detail}
    return node(name, *states, startedAt=T0, doneAt=T1, errs=[f"{name} broke"], detail=own)


def tree(*states: dict[str, Any], **keys: Any) -> State:
    """A run of which only its steps matter."""
    document = {"run": {"format": 1, "nonce": "ab", "idle": 2}, "startedAt": T0, **keys}
    return State.decode(json.dumps(node("root", *states, **document)))


def ended(*states: dict[str, Any], **keys: Any) -> State:
    """A run that returned."""
    return tree(*states, doneAt=T1, result="over", **keys)


def broken(*states: dict[str, Any], causes: tuple[str, ...] = ()) -> State:
    """A run that failed because of these steps."""
    own = {"attempt": 3, "failure": {"message": "no", "causes": causes}}
    return tree(*states, doneAt=T1, errs=["no"], detail=own)


# --- what a node says of itself -------------------------------------------------------------------

SHAPES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "not started": (node("a"), set()),
    "proceeding": (node("a", startedAt=T0), {"started", "proceeding"}),
    "pending": (
        node("a", startedAt=T0, detail={"wakeAt": LATER, "why": "the DNS"}),
        {"started", "pending"},
    ),
    "retrying": (
        node(
            "a",
            startedAt=T0,
            errs=["no route"],
            detail={"attempt": 2, "wakeAt": LATER, "failure": {"message": "no route"}},
        ),
        {"started", "pending"},
    ),
    "interrupted": (
        node("a", startedAt=T0, detail={"interruptions": 1}),
        {"started", "proceeding"},
    ),
    "done": (done("a"), {"started", "done", "succeeded"}),
    "done without a result": (
        node("a", startedAt=T0, doneAt=T1),
        {"started", "done", "succeeded"},
    ),
    "done after a failed attempt": (
        done("a", detail={"attempt": 3}),
        {"started", "done", "succeeded"},
    ),
    "failed": (failed("a"), {"started", "failed"}),
    "failed with an empty message": (
        node("a", startedAt=T0, doneAt=T1, errs=[""]),
        {"started", "failed"},
    ),
    "no errors are no failure": (
        node("a", startedAt=T0, doneAt=T1, errs=[]),
        {"started", "done", "succeeded"},
    ),
    "reset": (node("a", detail={"generation": 1}), set()),
    "recovered": (node("a", detail={"firstAt": T0}), set()),
    "parent of a pending step": (
        node("a", done("b"), node("c", startedAt=T0, detail={"wakeAt": LATER}), startedAt=T0),
        {"started", "pending"},
    ),
    "grandparent of a pending step": (
        node(
            "a",
            node("b", node("c", startedAt=T0, detail={"wakeAt": LATER}), startedAt=T0),
            startedAt=T0,
        ),
        {"started", "pending"},
    ),
    "parent of a pending and a proceeding step": (
        node(
            "a",
            node("b", startedAt=T0),
            node("c", startedAt=T0, detail={"wakeAt": LATER}),
            startedAt=T0,
        ),
        {"started", "proceeding"},
    ),
    "parent of done steps": (node("a", done("b"), startedAt=T0), {"started", "proceeding"}),
    "parent of a failed step": (node("a", failed("b"), startedAt=T0), {"started", "proceeding"}),
    "done parent of a failed step": (done("a", failed("b")), {"started", "done", "succeeded"}),
    "done parent of a pending step": (
        done("a", node("b", startedAt=T0, detail={"wakeAt": LATER})),
        {"started", "done", "succeeded"},
    ),
    "failed parent of a pending step": (
        failed("a", node("b", startedAt=T0, detail={"wakeAt": LATER})),
        {"started", "failed"},
    ),
}
SAYINGS = ("started", "proceeding", "pending", "done", "succeeded", "failed")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_node_is_one_thing_at_a_time(shape: str) -> None:
    """Done, failed, pending and proceeding exclude each other, and need a start."""
    document, expected = SHAPES[shape]
    found = tree(document).get("a")
    said = {word for word in SAYINGS if getattr(found, word)}
    assert said == expected
    assert len(said & {"done", "failed", "pending", "proceeding"}) == ("started" in said)


def test_a_node_tells_when_how_often_and_why() -> None:
    """Times are aware datetimes; attempts and interruptions count from their defaults."""
    state = tree(SHAPES["retrying"][0], failed("f"), node("n"))
    retrying, fail, new = state.get("a"), state.get("f"), state.get("n")
    assert retrying.started_at == datetime(2024, 2, 29, 12, tzinfo=UTC)
    assert retrying.wake_at == datetime(2024, 2, 29, 13, tzinfo=UTC)
    assert (retrying.done_at, retrying.attempt, retrying.interruptions) == (None, 2, 0)
    assert retrying.failure == asteps.Failure("no route")
    assert fail.done_at == datetime(2024, 2, 29, 12, 0, 1, 500_000, tzinfo=UTC)
    assert (fail.attempt, fail.interruptions) == (3, 2)
    assert (new.started_at, new.done_at, new.wake_at, new.failure) == (None, None, None, None)
    assert (new.attempt, new.interruptions) == (1, 0)


def test_payloads_are_decoded_on_demand() -> None:
    """A result and an info come back as the type that is asked for; a recorded null is one."""
    state = tree(done("a", result={"x": 1}, info=[1, 2]), done("n", result=None), node("bare"))
    assert state.get("a").result_as(dict[str, int]) == {"x": 1}
    assert state.get("a").info_as(list[int]) == [1, 2]
    assert state.get("n").result_as(int | None) is None  # type: ignore[arg-type]  # a union
    with pytest.raises(UsageError, match="'bare' has no result"):
        state.get("bare").result_as(int)
    with pytest.raises(UsageError, match="'bare' has no info"):
        state.get("bare").info_as(int)
    with pytest.raises(UsageError, match="the result of step 'a' is not list"):
        state.get("a").result_as(list)


# --- finding the way ------------------------------------------------------------------------------

AWKWARD = ["a/b", "a~b", "a~1b", "~", "/", "//", "~0~1", "ä ö", "a.b", "*", "0"]


@pytest.mark.parametrize("name", AWKWARD)
def test_every_name_has_a_path_of_its_own(name: str) -> None:
    """``~`` is ``~0`` and ``/`` is ``~1`` in a path (RFC 6901), and back."""
    path = join("up/down", name)
    assert split(path) == ["up", "down", name]
    assert escape(name) == name.replace("~", "~0").replace("/", "~1")
    state = tree(node("up", node("down", node(name, info=name))))
    assert state.get(path).name == name
    assert state.has(path)
    assert state.last_path() == path
    assert [p for p, _ in state.walk()] == ["", "up", "up/down", path]


def test_names_that_look_like_paths_are_told_apart() -> None:
    """A step ``a/b`` is not the step ``b`` of ``a``, nor the step ``a~1b``."""
    state = tree(node("a", node("b", info=1)), node("a/b", info=2), node("a~1b", info=3))
    found = [state.get(path).info_as(int) for path in ("a/b", "a~1b", "a~01b")]
    assert found == [1, 2, 3]


def test_a_tree_is_walked_in_order() -> None:
    """Parents come before children, siblings in their order; the root's path is empty."""
    state = tree(node("b", node("z"), node("y")), node("a"))
    paths = [path for path, _ in state.walk()]
    assert paths == ["", "b", "b/z", "b/y", "a"]
    assert all(state.get(path) is found for path, found in state.walk())
    assert [p for p, _ in state.get("b").walk()] == ["", "z", "y"]
    assert state.last_path() == "a"
    assert state.get("b").last_path() == "y"
    assert tree().last_path() == ""


def test_what_is_not_there_is_said_with_what_is() -> None:
    """An error names the path that was asked for, and the children that there are."""
    state = tree(node("up", node("a/b"), node("c")))
    assert not state.has("up/d")
    assert not state.has("up/c/d/e")
    verbs: list[Callable[[str], object]] = [
        state.get,
        state.recover,
        state.reset,
        lambda p: state.set_result(p, 1),
        lambda p: state.rename(p, "x"),
    ]
    for verb in verbs:
        with pytest.raises(UsageError) as caught:
            verb("up/d")
        assert str(caught.value) == "no step 'up/d': the children of up are: 'a/b', 'c'"
    with pytest.raises(UsageError, match=r"no step 'x/y': the children of the root are: 'up'$"):
        state.get("x/y")
    with pytest.raises(UsageError, match=r"no step 'up/a~1b/d': .* of up/a~1b are: none$"):
        state.get("up/a~1b/d")


# --- as a document --------------------------------------------------------------------------------


def test_a_document_comes_back_as_it_was() -> None:
    """Encoding and decoding gives an equal tree, defaults left out; no caller's copy is touched."""
    state = ended(done("a", failed("b"), info=None), node("c"))
    data = state.encode()
    again = State.decode(data)
    assert again == state
    assert again.encode() == data
    assert State.decode(data.decode()) == state
    assert b"null" in data  # a recorded info of null is not an absent one
    assert json.loads(State("bare").encode()) == {"name": "bare", "run": {"format": 1}}


def test_a_part_of_a_tree_can_be_kept_alone() -> None:
    """A subtree encodes as a document of its own, and stays as it is."""
    state = tree(node("a", done("b")))
    part = state.get("a")
    again = State.decode(part.encode())
    assert part.run is None
    assert again.run is not None
    again.run = None
    assert again == part


def test_times_keep_their_microsecond_and_may_be_of_any_zone() -> None:
    """An instant comes back to the microsecond, whatever zone it was written in."""
    moment = datetime(2024, 2, 29, 12, 0, 0, 123_457, UTC)
    for text in ("2024-02-29T12:00:00.123457Z", "2024-02-29T20:00:00.123457+08:00"):
        state = tree(node("a", startedAt=text))
        assert state.get("a").started_at == moment
        assert State.decode(state.encode()).get("a").started_at == moment


def test_a_snapshot_is_of_nobody() -> None:
    """Changing a snapshot changes nothing."""
    state = tree(node("a", done("b")))
    before = state.encode()
    copy = snapshot(state)
    assert copy == state
    copy.reset("a/b")
    copy.get("a").states = None
    assert state.encode() == before


# --- recover --------------------------------------------------------------------------------------


def test_recover_follows_the_causes_from_the_root() -> None:
    """Only failures that made the run fail are recovered, deepest first; handled ones are left."""
    state = broken(
        failed("handled"),
        failed(
            "a/b",
            failed("cause", failed("deep")),
            failed("also handled"),
            done("kept"),
            causes=("cause",),
        ),
        done("done", failed("inside a done one")),
        causes=("a/b",),
    )
    assert state.recover() == ["a~1b/cause", "a~1b", ""]
    new = [p for p, n in state.walk() if not n.started]
    assert new == ["", "a~1b", "a~1b/cause"]
    for path in new:
        found = state.get(path)
        assert (found.attempt, found.interruptions, found.failure) == (1, 0, None)
        assert (found.errs, found.done_at, found.wake_at) == (None, None, None)
    left = ["handled", "a~1b/cause/deep", "a~1b/also handled", "done/inside a done one"]
    assert [p for p, n in state.walk() if n.failed] == left
    assert [p for p, n in state.walk() if n.done] == ["a~1b/kept", "done"]


def test_recover_goes_as_deep_as_the_causes_do() -> None:
    """A failure that came up through five steps is recovered in all of them."""
    inner = failed("e")
    for name in "dcba":
        inner = failed(name, inner, causes=(inner["name"],))
    state = broken(inner, causes=("a",))
    assert state.recover() == ["a/b/c/d/e", "a/b/c/d", "a/b/c", "a/b", "a", ""]
    assert not any(n.failed for _, n in state.walk())


def test_recover_keeps_what_must_not_be_lost() -> None:
    """A recovered step keeps its info, its generation, its inputs and its children."""
    state = broken(
        {
            **failed("a", done("b"), generation=4, inputs="d1", tokenName="old"),
            "info": {"task": 7},
        },
        causes=("a",),
    )
    assert state.recover() == ["a", ""]
    found = state.get("a")
    assert found.info_as(dict[str, int]) == {"task": 7}
    assert found.get("b").done
    assert found.detail is not None
    kept = (found.detail.generation, found.detail.inputs, found.detail.token_name)
    assert kept == (4, "d1", "old")


def test_recover_of_what_another_library_saved_takes_every_failed_step() -> None:
    """Where no failure says its causes, each failed child is one."""
    state = tree(
        node(
            "a", node("b", startedAt=T0, doneAt=T1, errs=["x"]), startedAt=T0, doneAt=T1, errs=["x"]
        ),
        done("c"),
        doneAt=T1,
        errs=["x"],
    )
    assert state.recover() == ["a/b", "a", ""]


def test_recover_of_one_path_reopens_what_is_above() -> None:
    """With a path, a handled failure is recovered too; ancestors are entered again."""
    state = ended(
        done("a", failed("b", failed("c"), failed("d"), causes=("c",)), done("e")), done("f")
    )
    assert state.recover("a/b") == ["a/b/c", "a/b"]
    assert [p for p, n in state.walk() if n.done] == ["a/e", "f"]
    assert [p for p, n in state.walk() if n.failed] == ["a/b/d"]
    assert not state.started
    assert state.result is ABSENT
    assert state.get("a").result is ABSENT


def test_recover_of_a_retrying_step_makes_it_due() -> None:
    """Somebody who has mended the cause need not wait for the next attempt."""
    state = tree(SHAPES["retrying"][0])
    assert state.recover("a") == ["a"]
    found = state.get("a")
    assert (found.pending, found.attempt, found.wake_at, found.errs) == (False, 1, None, None)


@pytest.mark.parametrize("path", ["a", "n", ""])
def test_recover_of_what_has_not_failed_is_refused(path: str) -> None:
    """Recovering a done, a new or a proceeding step is misuse, and changes nothing."""
    state = tree(done("a"), node("n"))
    before = state.encode()
    with pytest.raises(UsageError, match=rf"step '{path}' has not failed: .*nothing to recover"):
        state.recover(path)
    assert state.encode() == before


def test_recover_without_a_failure_does_nothing() -> None:
    """A run that has not failed has nothing to recover, whatever it handled."""
    for state in (tree(), ended(failed("handled")), tree(failed("handled"))):
        before = state.encode()
        assert state.recover() == []
        assert state.encode() == before


# --- reset ----------------------------------------------------------------------------------------


def test_reset_forgets_a_step_and_what_is_below() -> None:
    """The node keeps its name, its place and one more generation; siblings stay, in order."""
    state = ended(
        done("a", done("b", done("c"), info=1, place=7, detail={"generation": 2}), done("d")),
        done("e"),
        failed("handled"),
    )
    state.reset("a/b")
    assert state.get("a/b") == State("b", place=7, detail=Detail(generation=3))
    assert [p for p, _ in state.walk()] == ["", "a", "a/b", "a/d", "e", "handled"]
    assert [p for p, n in state.walk() if n.done] == ["a/d", "e"]
    assert [p for p, n in state.walk() if not n.started] == ["", "a", "a/b"]
    assert state.get("handled").failed
    assert state.result is ABSENT


def test_reset_of_a_renamed_step_keeps_the_name_of_its_tokens() -> None:
    """Tokens after rename and reset differ from all before, under whichever name."""
    state = tree(done("a", detail={"tokenName": "old", "generation": 1}))
    state.reset("a")
    assert state.get("a").detail == Detail(generation=2, token_name="old")


def test_reset_of_the_root_begins_again() -> None:
    """``reset("")`` forgets all steps; the run keeps its nonce, and its generation goes up."""
    state = broken(done("a"), failed("b"), causes=("b",))
    state.reset("")
    assert state.states is None
    assert not state.started
    assert state.detail == Detail(generation=1)
    assert state.run is not None
    assert (state.run.nonce, state.run.idle) == ("ab", 0)
    state.reset("")
    assert state.detail == Detail(generation=2)


# --- set_result -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", ["not started", "proceeding", "retrying", "failed", "done", "reset"]
)
def test_set_result_makes_a_step_done(shape: str) -> None:
    """Whatever the step had come to, it is done with this value; what is above runs again."""
    state = ended(node("up", SHAPES[shape][0], done("b"), startedAt=T0, doneAt=T1))
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    state.set_result("up/a", {"id": 5}, now=moment)
    found = state.get("up/a")
    assert found.done
    assert found.result_as(dict[str, int]) == {"id": 5}
    assert found.done_at == moment
    assert (found.errs, found.failure, found.wake_at) == (None, None, None)
    assert [p for p, n in state.walk() if n.done] == ["up/a", "up/b"]
    assert not state.started
    assert not state.get("up").started
    assert State.decode(state.encode()) == state


def test_set_result_takes_the_time_of_the_call() -> None:
    """Without ``now=`` the step ended just now."""
    state = tree(node("a"))
    state.set_result("a", None)
    at = state.get("a").done_at
    assert at is not None
    assert abs(datetime.now(UTC) - at) < timedelta(seconds=10)
    assert bytes(state.get("a").result) == b"null"


def test_set_result_refuses_what_cannot_be_kept() -> None:
    """A value that JSON cannot hold is misuse; the tree stays as it was, ancestors too."""
    state = ended(done("a"))
    before = state.encode()
    for value, why in ((object(), "enc_hook="), (float("nan"), "NaN"), ("\ud800", "surrogates")):
        with pytest.raises(UsageError, match=rf"the result of step 'a' .*{why}"):
            state.set_result("a", value)
    assert state.encode() == before
    state.set_result("a", set, enc_hook=lambda kind: kind.__name__)
    assert state.get("a").result_as(str) == "set"


# --- rename ---------------------------------------------------------------------------------------


def test_rename_keeps_all_but_the_name() -> None:
    """Nothing is reopened; the step answers under its new path, its result and children kept."""
    state = ended(done("up", done("a", done("b"), place=1, info=3), done("c", place=2)))
    state.rename("up/a", "x/y")
    assert [p for p, _ in state.walk()] == ["", "up", "up/x~1y", "up/x~1y/b", "up/c"]
    assert all(n.done for _, n in state.walk())
    assert state.get("up/x~1y").info_as(int) == 3
    assert State.decode(state.encode()) == state


@pytest.mark.parametrize(
    ("path", "name", "error", "says"),
    [
        ("", "x", UsageError, "the root cannot be renamed"),
        ("a", "b", DuplicateStepError, "'b'"),
        ("up/c", "d/e", DuplicateStepError, "'up/d~1e'"),
        ("a", "", UsageError, "1 to 200 characters"),
        ("a", "n" * 201, UsageError, "1 to 200 characters"),
        ("a", "#1", UsageError, "kept for asteps"),
        ("a", "$end", UsageError, "kept for asteps"),
        ("a", "a\tb", UsageError, "control characters"),
        ("a", "\ud800", UsageError, "surrogates"),
        ("nowhere", "x", UsageError, "no step 'nowhere'"),
    ],
)
def test_rename_refuses_what_no_step_may_be_called(
    path: str, name: str, error: type[Exception], says: str
) -> None:
    """The root, a sibling's name and names that are not allowed are refused; nothing changes."""
    state = tree(done("a"), done("b"), node("up", done("c"), done("d/e")))
    before = state.encode()
    with pytest.raises(error) as caught:
        state.rename(path, name)
    assert says in str(caught.value)
    assert state.encode() == before


def test_rename_to_its_own_name_changes_nothing() -> None:
    """A rename may be repeated."""
    state = tree(done("a"))
    before = state.encode()
    state.rename("a", "a")
    assert state.encode() == before


async def test_a_renamed_step_keeps_its_tokens() -> None:
    """The token of a renamed step, and of what is below it, is the one it had."""
    tokens: dict[str, str] = {}

    async def leaf(s: Step) -> None:
        tokens[s.path] = s.token

    async def parent(s: Step) -> None:
        tokens[s.path] = s.token
        await s.do("leaf", leaf)

    async def root(s: Step, names: list[str]) -> None:
        for name in names:
            await s.do(name, parent)

    state = State("root")
    await asteps.reconcile(root, ["a"], state=state, name="root")
    before, tokens = tokens, {}
    state.rename("a", "b")
    state.get("b")._done = None  # entered again, not reset: its tokens stay
    state.get("b/leaf")._done = None
    state._done = None
    await asteps.reconcile(root, ["b", "a"], state=state, name="root")
    assert tokens["b"] == before["a"]
    assert tokens["b/leaf"] == before["a/leaf"]
    assert len(set(tokens.values())) == 4  # a new step under the old name has a token of its own


# --- reopening ------------------------------------------------------------------------------------

VERBS = {
    "recover": lambda s: s.recover("up/broken"),
    "reset": lambda s: s.reset("up/broken"),
    "set_result": lambda s: s.set_result("up/broken", 1),
}


@pytest.mark.parametrize("verb", VERBS)
def test_reopening_also_resets_the_end(verb: str) -> None:
    """``$end`` belongs to an end that the run has no more: it will run again, with new tokens."""
    state = ended(done("up", failed("broken")), done("$end", done("mail")))
    VERBS[verb](state)
    assert state.get("$end") == State("$end", detail=Detail(generation=1))
    assert not state.started
    assert not state.get("up").started


def test_rename_leaves_the_end_alone() -> None:
    """Renaming reopens nothing, so the run's end stands."""
    state = ended(done("a"), done("$end"))
    state.rename("a", "b")
    assert state.done
    assert state.get("$end").done


def test_the_end_itself_can_be_recovered_without_running_the_rest_again() -> None:
    """A failed ``$end`` is no part of the run's outcome: the run stays done."""
    state = ended(done("a"), failed("$end"))
    assert state.recover("$end") == ["$end"]
    assert state.done
    assert not state.get("$end").started


def test_reopening_makes_waiting_ancestors_due() -> None:
    """What an operator did is not to wait for an hour, nor is an ancestor's next attempt."""
    state = tree(
        node(
            "up",
            failed("a"),
            startedAt=T0,
            errs=["x"],
            detail={"attempt": 2, "wakeAt": LATER, "why": "x"},
        )
    )
    state.reset("up/a")
    up = state.get("up")
    assert (up.started, up.pending, up.wake_at, up.errs, up.attempt) == (
        False,
        False,
        None,
        None,
        1,
    )


# --- as records -----------------------------------------------------------------------------------

_NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("~/ab"),
    min_size=1,
    max_size=8,
).filter(lambda name: name[0] not in "$#")
_TIMES = st.none() | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(  # noqa: DTZ001
    lambda moment: moment.replace(tzinfo=UTC)
)
_RAWS = st.just(ABSENT) | st.sampled_from(
    [msgspec.Raw(text) for text in (b"null", b"1", b'"\xc3\xa4"', b'{"a":[1,{}]}', b"1e308")]
)
_FAILURES = st.builds(
    asteps.Failure,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    types=st.just(("builtins.OSError",)) | st.just(()),
    final=st.booleans(),
    causes=st.just(()) | st.just(("a",)),
)


@st.composite
def _details(draw: st.DrawFn) -> Detail:
    return Detail(
        generation=draw(st.integers(0, 3)),
        attempt=draw(st.integers(1, 3)),
        failure=draw(st.none() | _FAILURES),
        wake_at=draw(_TIMES),
        why=draw(st.sampled_from(["", "DNS"])),
        once=draw(st.booleans()),
    )


@st.composite
def _trees(draw: st.DrawFn, depth: int = 0) -> State:
    """A node; as the root of a tree, in some order of places."""
    children: list[State] = []
    if depth < 3:
        names = draw(st.lists(_NAMES, max_size=3, unique=True))
        children = [draw(_trees(depth + 1)) for _ in names]
        for place, (child, name) in enumerate(zip(children, names, strict=True)):
            child.name, child.place = name, place * draw(st.integers(1, 3)) if place else 0
        places = [c.place for c in children]
        if any(a >= b for a, b in pairwise(places)):
            for place, child in enumerate(children):
                child.place = place
    found = State("" if depth else draw(_NAMES))
    found.info, found.result = draw(_RAWS), draw(_RAWS)
    found.errs = draw(st.none() | st.lists(st.text("ab", max_size=2), min_size=1, max_size=2))
    found._started, found._done = draw(_TIMES), draw(_TIMES)
    found.detail = draw(st.none() | _details())
    found.states = children or None
    if not depth:
        found.run = RunRecord(1, nonce="ab")
    return found


@given(state=_trees())
def test_any_tree_comes_back_from_its_document(state: State) -> None:
    """Decoding what a tree encodes to gives an equal tree, which encodes to the same bytes."""
    data = state.encode()
    again = State.decode(data)
    assert again == state
    assert again.encode() == data
    assert json.loads(data)["name"] == state.name


@given(state=_trees(), random=st.randoms(use_true_random=False))
def test_any_tree_comes_back_from_its_records(state: State, random: Any) -> None:
    """Records may come in any order; their keys are the paths, and none lists its children."""
    records = tree_as_records(state)
    assert list(records) == [path for path, _ in state.walk()]
    assert all("states" not in json.loads(data) for data in records.values())
    shuffled = list(records.items())
    random.shuffle(shuffled)
    again = assemble(dict(shuffled), "run 'x'")
    assert again == state
    assert tree_as_records(again) == records


@given(state=_trees(), random=st.randoms(use_true_random=False))
def test_one_changed_node_is_one_changed_record(state: State, random: Any) -> None:
    """A save costs what changed: no other node's record differs."""
    before = tree_as_records(state)
    path, changed = random.choice(list(state.walk()))
    changed.info = msgspec.Raw(b'"changed"')
    after = tree_as_records(state)
    assert [p for p in after if after[p] != before[p]] == [path]
    assert encode_record(changed) == after[path]
    assert changed.states == state.get(path).states  # encoding one record leaves the node whole


@given(state=_trees())
def test_a_new_last_child_changes_no_other_record(state: State) -> None:
    """Siblings keep their records when a step is added: a parent does not list its children."""
    before = tree_as_records(state)
    last = max((c.place for c in state.states or ()), default=-1)
    state.states = [*(state.states or ()), State("\N{SNOWMAN}new", place=last + 1)]
    after = tree_as_records(state)
    assert {p: after[p] for p in before} == before
    assert len(after) == len(before) + 1


def test_places_that_contradict_the_order_are_numbered_anew() -> None:
    """A tree made by hand, or read from elsewhere, keeps its order in a store."""
    state = tree(node("b"), node("a"), node("c", place=1))
    again = assemble(tree_as_records(state), "run 'x'")
    assert [c.name for c in again.states or ()] == ["b", "a", "c"]


def test_recovering_the_run_also_resets_the_end() -> None:
    """A failed run that is recovered has no end any more, so ``$end`` runs again at the next."""
    state = broken(failed("a"), done("$end"), causes=("a",))
    assert state.recover() == ["a", ""]
    assert state.get("$end") == State("$end", detail=Detail(generation=1))


def test_a_renamed_cause_is_still_a_cause() -> None:
    """Recover finds the step whose failure it was, under whichever name it goes now."""
    state = broken(failed("up", failed("a"), causes=("a",)), causes=("up",))
    state.rename("up/a", "b")
    assert state.recover() == ["up/b", "up", ""]
