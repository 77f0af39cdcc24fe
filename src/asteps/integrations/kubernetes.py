"""Operators: runs that live in the status of what they are about, driven pass by pass.

`operate` is a whole operator, on asyncio and trio::

    async def bring_up(s: Step, obj: Object) -> str:
        disk = await s.do("disk", create_disk, obj["spec"]["size"], inputs=obj["spec"]["size"])
        return await s.do("server", create_server, disk, inputs=disk)

    async def tear_down(s: Step, obj: Object) -> None: ...

    anyio.run(partial(operate, "example.com/v1/databases", bring_up, cleanup=tear_down))

`reconcile_object` is one pass over one object, for those who have a loop of their own; for kopf
there is `asteps.integrations.kopf`. What a pass has done is in the object's status before it goes
on, so a killed operator goes on where it was, and `kubectl` shows how far that is.

`operate` needs ``asteps[kubernetes]``, that is lightkube, unless it is given a `Cluster`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from .._step import Step
from ..errors import UsageError
from ._kubernetes_crd import parse_resource
from ._kubernetes_loop import Operator
from ._kubernetes_pass import (
    Object,
    ObjectOptions,
    Which,
    check_keywords,
    main_state,
    reconcile_object,
    run_id,
)
from ._kubernetes_view import status_view
from ._kubernetes_watch import Cluster

if TYPE_CHECKING:
    from lightkube import AsyncClient

    from ._kubernetes_lightkube import LightkubeCluster

__all__ = [
    "Cluster",
    "LightkubeCluster",
    "Object",
    "ObjectOptions",
    "Which",
    "main_state",
    "operate",
    "reconcile_object",
    "run_id",
    "status_view",
]


def __getattr__(name: str) -> Any:
    if name != "LightkubeCluster":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._kubernetes_lightkube import LightkubeCluster  # noqa: PLC0415 - it needs the extra

    return LightkubeCluster


async def operate(
    resource: str,
    fn: Callable[[Step, Object], Awaitable[object]],
    /,
    *,
    cleanup: Callable[[Step, Object], Awaitable[object]] | None = None,
    client: AsyncClient | Cluster | None = None,
    namespace: str | None = None,
    finalizer: str | None = None,
    limit: int = 10,
    **options: Unpack[ObjectOptions],
) -> NoReturn:
    """Bring all objects of a resource to what their specs say, until it is cancelled.

    Each object has a pass when it appears, when its spec changes, and when it is due again; what
    only changes labels or the status wakes nobody. There is one pass over an object at a time, and
    a failed run stays failed until its spec changes or an operator recovers it.

    With ``cleanup`` an object gets a finalizer before its first pass. When somebody deletes it, the
    pass that is under way ends first (see ``max_wait=``); then ``cleanup`` runs, as a run of its
    own, until it is done, and the finalizer is taken away. A clean-up that failed keeps the object.

    Nobody keeps two operators from running the same steps at the same time: run one. Should there
    be two for a while, each state that was saved stays true, one loses a race and leaves the
    object alone for some seconds, and the steps' tokens tell a cloud that it is asked twice.

    Args:
        resource: ``group/version/plural``.
        fn: The root: an async function of its Step and of the object.
        cleanup: The root of the clean-up; `main_state` tells it what there is.
        client: A ``lightkube.AsyncClient``, which stays open, or another `Cluster`. Without one a
            client is made of the configuration that lightkube finds, and closed.
        namespace: Where; by default everywhere.
        finalizer: What keeps an object until it is cleaned up; by default ``<group>/asteps``.
        limit: How many passes at the same time.
        **options: See `ObjectOptions`.

    Raises:
        UsageError: ``resource`` names none, or an option is wrong.
        MissingDependencyError: lightkube is not installed.

    Cancellation: It is what ends it. Passes end as those of `asteps.reconcile` do; no task is left.
    """
    of = parse_resource(resource)
    if limit < 1:
        raise UsageError(f"limit= is a whole number from 1, not {limit!r}")
    check_keywords(options)
    if isinstance(client, Cluster):
        await Operator(
            of,
            fn,
            cleanup,
            client,
            namespace=namespace,
            finalizer=finalizer or f"{of.group}/asteps",
            limit=limit,
            options=options,
        ).run()
    from ._kubernetes_lightkube import LightkubeCluster  # noqa: PLC0415 - it needs the extra

    async with LightkubeCluster(client) as cluster:
        await operate(
            resource,
            fn,
            cleanup=cleanup,
            client=cluster,
            namespace=namespace,
            finalizer=finalizer,
            limit=limit,
            **options,
        )
