"""How the waits for cloud tasks type; see `api.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, assert_type

from asteps import Retry, Step
from asteps.integrations.aws import Client, wait_until
from asteps.integrations.operations import run_operation


@dataclass
class Image:
    id: str
    size: int


def create(machine: str, token: str) -> str:
    return machine + token


async def create_async(machine: str) -> int:
    return len(machine)


def by_id(image: str) -> dict[str, list[str]]:
    return {"ImageIds": [image]}


def by_number(image: int) -> dict[str, int]:
    return {"Number": image}


def image_of(answer: dict[str, Any]) -> Image:
    return Image(**answer)


async def waits(s: Step, ec2: Client) -> None:
    start = partial(create, "vm", s.token_for("a"))
    a = await wait_until(s, "a", ec2, "image_available", start=start, params=by_id, every=5)
    assert_type(a, str)
    later = partial(create_async, "vm")
    b = await wait_until(s, "b", ec2, "image_available", start=later, params=by_number)
    assert_type(b, int)
    c = await wait_until(
        s, "c", ec2, "image_available", start=start, params=lambda i: {"ImageIds": [i]}
    )
    assert_type(c, str)
    d = await wait_until(
        s, "d", ec2, "image_available", start=start, params=by_id, result=image_of, retry=Retry()
    )
    assert_type(d, Image)
    e = await wait_until(
        s, "e", ec2, "image_available", start=later, params=by_number, result=image_of, timeout=None
    )
    assert_type(e, Image)
    f = await wait_until(s, "f", ec2, "image_available", params={"ImageIds": ["ami-1"]})
    assert_type(f, dict[str, Any])
    g = await wait_until(
        s, "g", ec2, "image_available", params={"ImageIds": ["ami-1"]}, result=image_of
    )
    assert_type(g, Image)


async def wrong_waits(s: Step, ec2: Client) -> None:
    start = partial(create, "vm", s.token)
    await wait_until(s, "a", ec2, "image_available", start=start)  # type: ignore[call-overload]
    await wait_until(s, "b", ec2, "image_available", start=start, params=by_number)  # type: ignore[arg-type]
    await wait_until(s, "c", ec2, "image_available", params=by_id)  # type: ignore[call-overload]
    await wait_until(s, "d", object(), "image_available", params={})  # type: ignore[call-overload]


async def operations(s: Step) -> None:
    def begin() -> dict[str, str]:
        return {"name": "operations/42"}

    async def get(name: str) -> dict[str, object]:
        return {"name": name, "done": True}

    b = await run_operation(s, "b", begin, get, result=image_of, every=5, timeout=3600)
    assert_type(b, Image)
    await run_operation(s, "c", begin, get)  # type: ignore[call-overload]
