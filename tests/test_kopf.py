"""kopf is told what a pass has come to, and has the handlers that a resource needs.

What comes of it on a real API server is in ``test_kubernetes_e2e.py``.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import kopf
import pytest
from kubernetes_memory import MemoryCluster

import asteps
from asteps import Done, Failed, Pending, State, Step, StepError, UsageError
from asteps.errors import Failure
from asteps.integrations import kopf as steps
from asteps.integrations.kubernetes import Object
from asteps.stores.kubernetes import StatusStore

SHOP = "example.com/v1/databases/default/shop"


async def bring_up(s: Step, obj: Object) -> str:
    """A root."""
    return "up"


async def tear_down(s: Step, obj: Object) -> None:
    """A clean-up."""


def test_done_lets_the_handler_succeed() -> None:
    """Nothing is raised, nor returned, which kopf would store in the status."""
    steps.answer(Done("up", State("r")))
    steps.answer(None)  # the object is gone


def test_pending_comes_back_when_it_is_due() -> None:
    """The delay is the run's, and the message says who waits and for what."""
    with pytest.raises(kopf.TemporaryError, match=r"^'disk/ready' waits: it boots$") as waits:
        steps.answer(Pending(12.5, "disk/ready", "it boots", State("r")))
    assert waits.value.delay == 12.5
    with pytest.raises(kopf.TemporaryError, match=r"^the run waits$"):
        steps.answer(Pending(1, "", "", State("r")))


def test_to_wait_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A wait is information; that kopf, too, does not call it an error, the e2e tests see."""
    with caplog.at_level(logging.INFO), pytest.raises(kopf.TemporaryError):
        steps.answer(Pending(12.5, "disk", "it boots", State("r")))
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "'disk' waits: it boots (12.5 seconds)")
    ]


def test_failed_is_left_alone() -> None:
    """A failure is permanent: kopf asks again when the spec has changed."""
    error = StepError("", Failure(message="no such size"))
    with pytest.raises(kopf.PermanentError, match="no such size"):
        steps.answer(Failed(error, State("r")))


def test_progress_is_kept_in_annotations() -> None:
    """Nothing of kopf's own is written into the status, which is where the steps are."""
    settings = kopf.OperatorSettings()
    steps.configure(settings, prefix="operator.example.com")
    storage = settings.persistence.progress_storage
    assert type(storage) is kopf.AnnotationsProgressStorage
    assert storage.prefix == "operator.example.com"


def handlers_of(registry: kopf.OperatorRegistry) -> set[tuple[str, str | None, bool | None]]:
    """Id, reason and whether a finalizer is needed, of each."""
    return {(h.id, h.reason, h.requires_finalizer) for h in registry._changing.get_all_handlers()}


def test_a_resource_gets_its_handlers() -> None:
    """Creation, resuming and edits are one handler to kopf; a clean-up asks for a finalizer."""
    registry = kopf.OperatorRegistry()
    decorate = steps.operate(
        "example.com", "v1", "databases", cleanup=tear_down, registry=registry, max_wait=3
    )
    assert decorate(bring_up) is bring_up
    assert handlers_of(registry) == {
        ("bring_up/spec", "create", None),
        ("bring_up/spec", None, None),
        ("bring_up/spec", "update", None),
        ("bring_up/cleanup", "delete", True),
    }
    functions = {h.fn for h in registry._changing.get_all_handlers() if h.id == "bring_up/spec"}
    assert len(functions) == 1


def test_without_a_clean_up_nothing_holds_an_object() -> None:
    """No handler asks for a finalizer."""
    registry = kopf.OperatorRegistry()
    steps.operate("example.com", "v1", "databases", registry=registry, id="mine")(bring_up)
    assert {needed for _, _, needed in handlers_of(registry)} == {None}
    assert {id for id, _, _ in handlers_of(registry)} == {"mine/spec"}


@pytest.mark.parametrize(
    ("where", "options", "says"),
    [
        (("", "v1", "pods"), {}, "is no group of yours"),
        (("example.com", "1", "databases"), {}, "is no version"),
        (("example.com", "v1", "databases"), {"max_wiat": 3}, "there is no keyword max_wiat"),
    ],
    ids=["group", "version", "keyword"],
)
def test_misuse_is_told_of_when_the_module_is_loaded(
    where: tuple[str, str, str], options: dict[str, Any], says: str
) -> None:
    """Before kopf has begun anything."""
    with pytest.raises(UsageError, match=says):
        steps.operate(*where, **options)


class Handlers:
    """What kopf would call for one object in memory, whose root and clean-up fail."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.cluster.make(SHOP, spec={"size": 1})
        self.works = False
        self._registry = registry = kopf.OperatorRegistry()
        decorate = steps.operate(
            "example.com",
            "v1",
            "databases",
            cleanup=self._root,
            registry=registry,
            transport=self.cluster.client(),
            id="up",
        )
        decorate(self._root)
        self._settings = kopf.OperatorSettings()
        steps.configure(self._settings)

    async def _root(self, s: Step, obj: Object) -> None:
        if not self.works:
            raise ValueError("it does not work")

    async def start(self) -> None:
        """The operator starts."""
        (handler, *_) = self._registry._activities.get_all_handlers()
        start: Any = handler
        await start.fn(settings=self._settings)

    async def call(self, id: str) -> None:
        """One call of a handler."""
        handlers = self._registry._changing.get_all_handlers()
        handler: Any = next(h for h in handlers if h.id == id)
        await handler.fn(body=self._body())

    async def see(self) -> kopf.Patch | None:
        """The object's change is seen: what is patched for it."""
        (handler,) = self._registry._watching.get_all_handlers()
        see: Any = handler
        body = self._body()
        if not see.when(type="MODIFIED", body=body):
            return None
        patch = kopf.Patch()
        await see.fn(body=body, patch=patch)
        return patch

    def _body(self) -> kopf.Body:
        return kopf.Body(cast("Any", self.cluster.get(SHOP)))

    async def recover(self, id: str) -> None:
        """Somebody has the run go on."""
        store = StatusStore(SHOP, transport=self.cluster.client())
        async with asteps.edit_run(store, id) as state:
            state.recover()
        await store.aclose()


HANDLED = "kopf.zalando.org/last-handled-configuration"


async def test_a_recovered_run_is_called_for() -> None:
    """Kopf has done with a spec whose run has failed; recovered, the spec counts as another one."""
    handlers = Handlers()
    await handlers.start()
    with pytest.raises(kopf.PermanentError):
        await handlers.call("up/spec")
    assert await handlers.see() is None
    await handlers.recover("default/shop")
    patch = await handlers.see()
    assert patch is not None
    assert "recovered" in patch["metadata"]["annotations"][HANDLED]
    handlers.works = True
    await handlers.call("up/spec")
    assert handlers.cluster.get(SHOP)["status"]["phase"] == "Succeeded"
    assert await handlers.see() is None


async def test_a_clean_up_that_failed_keeps_the_object() -> None:
    """Kopf would let an object go after a `PermanentError`; recovered, it is called at once."""
    handlers = Handlers()
    await handlers.start()
    deleted = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    handlers.cluster.change(SHOP, deleted, status=False)
    with pytest.raises(kopf.TemporaryError, match="the clean-up failed") as caught:
        await handlers.call("up/cleanup")
    assert caught.value.delay == 60
    assert await handlers.see() is None
    await handlers.recover("default/shop/cleanup")
    patch = await handlers.see()
    assert patch is not None
    assert HANDLED not in str(patch)
    handlers.works = True
    await handlers.call("up/cleanup")
    assert await handlers.see() is None
