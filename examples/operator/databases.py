"""What a database takes, and how it is taken away: the steps, and nothing of Kubernetes.

`with_kopf.py` and `without_kopf.py` run them for each object. An object is what the API server
says of it, as JSON: ``obj["metadata"]["name"]``, ``obj["spec"]["size"]``.
"""

from __future__ import annotations

from typing import Any

from pretended_cloud import ThrottledError, this_cloud

from asteps import Retry, Step

CLOUD = this_cloud()
BUSY_CLOUD = Retry(attempts=5, delay=CLOUD.pace / 2, max_delay=30, on=ThrottledError)


async def bring_up(s: Step, obj: dict[str, Any]) -> str:
    name, spec = _name_of(obj), obj["spec"]
    size, version = spec["size"], spec["version"]
    # inputs= says what a step depends on. If that has changed, the step is forgotten and run again,
    # with another token; and so is whatever depends on its result.
    disk = await s.do("disk", make_disk, name, size, inputs=size)
    server = await s.do(
        "server", start_server, name, version, disk, inputs=[version, disk], retry=BUSY_CLOUD
    )
    address = await s.call("address", CLOUD.point, name, server, inputs=server)
    await s.do("tidy", delete_others, name, [disk, server], inputs=[disk, server])
    return address


async def make_disk(s: Step, name: str, size: int) -> str:
    disk = await CLOUD.start_disk(name, size, token=s.token)  # asked again, it answers the same
    if not await CLOUD.is_ready(disk):
        s.pending(after=CLOUD.pace, why=f"{disk} is being made")
    return disk


async def start_server(s: Step, name: str, version: str, disk: str) -> str:
    server = await CLOUD.start_server(name, version, disk, token=s.token)
    if not await CLOUD.is_ready(server):
        s.pending(after=CLOUD.pace, why=f"{server} is being started")
    return server


async def delete_others(s: Step, name: str, keep: list[str]) -> None:
    """What an earlier spec has asked for."""
    things = await s.call("find", CLOUD.things_of, name)
    await s.map("delete", delete, [thing for thing in things if thing not in keep])


async def bring_down(s: Step, obj: dict[str, Any]) -> None:
    name = _name_of(obj)
    await s.call("address", CLOUD.forget_address, name)
    things = await s.call("find", CLOUD.things_of, name)
    await s.map("delete", delete, things)


async def delete(s: Step, thing: str) -> None:
    await CLOUD.delete(thing)
    if not await CLOUD.is_gone(thing):
        s.pending(after=CLOUD.pace, why=f"{thing} is being deleted")


def _name_of(obj: dict[str, Any]) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
