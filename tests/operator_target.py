"""The operator that the tests on a real API server start, kill and start again.

It leaves a line in a file for everything that it does, on the disk before it goes on, so that the
tests know what was done however often the process died. `kopf run` loads it as a module; as a
script it is the plain watch loop: ``operator_target.py asyncio`` or ``trio``.

By environment: ``RESOURCE`` (group/version/plural), ``NAMESPACE``, ``EFFECTS`` (the file),
``HOLD`` (as long as this file exists, the step ``hold`` does not end, and ``stuck`` fails), and
``OPTIONS`` (JSON, for `operate`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from asteps import Retry, Step
from asteps.integrations.kubernetes import Object, main_state, operate

HOLD = Path(os.environ["HOLD"])
OPTIONS: dict[str, Any] = json.loads(os.environ.get("OPTIONS", "{}"))
CLEANUP = OPTIONS.pop("cleanup", True)

_effects = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def note(obj: Object, what: str, path: str, value: object = None) -> None:
    """Leave a line."""
    generation = obj["metadata"]["generation"]
    line = [os.getpid(), obj["metadata"]["name"], generation, what, path, value]
    os.write(_effects, (json.dumps(line) + "\n").encode())
    os.fsync(_effects)


async def do(s: Step, obj: Object, name: str, fn: Any, value: Any, **options: Any) -> Any:
    """A step that depends on a value, and notes what it does."""

    async def body(s: Step) -> Any:
        note(obj, "start", s.path, value)
        return await fn(s, value)

    result = await s.do(name, body, inputs=value, **options)
    note(obj, "reported", f"{s.path}/{name}".lstrip("/"), value)
    return result


async def plain(s: Step, value: Any) -> Any:
    """A step that ends at once."""
    return value


async def wait(s: Step, seconds: float) -> str:
    """A step that is called again after some time."""
    if not s.info_as(bool):
        await s.save_info(True)
        s.pending(after=seconds, why="it takes its time")
    return "waited"


async def hold(s: Step, value: Any) -> Any:
    """A step that ends when the test wants it to."""
    while HOLD.exists():
        await anyio.sleep(0.02)
    return value


async def big(s: Step, size: int) -> str:
    """A step whose result is large, and cannot be made small."""
    return os.urandom(size // 2).hex()


async def flaky(s: Step, times: int) -> int:
    """A step that fails at first."""
    if s.attempt <= times:
        raise ConnectionError(f"attempt {s.attempt} of the pretended cloud")
    return s.attempt


async def stuck(s: Step, value: Any) -> Any:
    """A step that fails as long as the test wants it to."""
    if HOLD.exists():
        raise ValueError("it is stuck")
    return value


async def bring_up(s: Step, obj: Object) -> int:
    """What the spec says."""
    spec = obj["spec"]
    for n in range(spec.get("before", 2)):
        await do(s, obj, f"before{n}", plain, n)
    await do(s, obj, "disk", plain, spec.get("size", 1))
    if "flaky" in spec:
        retry = Retry(attempts=10, delay=0.3, jitter=0)
        await do(s, obj, "flaky", flaky, spec["flaky"], retry=retry)
    if "wait" in spec:
        await do(s, obj, "wait", wait, spec["wait"])
    for n, size in enumerate(spec.get("big", ())):
        await do(s, obj, f"big{n}", big, size)
    if "stuck" in spec:
        await do(s, obj, "stuck", stuck, spec["stuck"])
    await do(s, obj, "hold", hold, spec.get("size", 1))
    for n in range(spec.get("after", 2)):
        await do(s, obj, f"after{n}", plain, n)
    if spec.get("size", 1) < 0:
        raise ValueError("a size is positive")
    return int(spec.get("size", 1))


async def tear_down(s: Step, obj: Object) -> None:
    """What was made goes."""
    made = await main_state()
    assert made is not None
    disk = made.get("disk").result_as(int) if made.has("disk") else None
    await do(s, obj, "erase", plain, disk)
    await do(s, obj, "wait", wait, 0.3)
    if "stuck" in obj["spec"]:
        await do(s, obj, "stuck", stuck, "cleanup")
    await do(s, obj, "hold", hold, None)
    await do(s, obj, "forget", plain, None)


cleanup = tear_down if CLEANUP else None

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    main = partial(
        operate,
        os.environ["RESOURCE"],
        bring_up,
        cleanup=cleanup,
        namespace=os.environ["NAMESPACE"],
        **OPTIONS,
    )
    anyio.run(main, backend=sys.argv[1])
else:
    import kopf

    from asteps.integrations import kopf as steps

    @kopf.on.startup()
    async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        """Progress in annotations alone."""
        steps.configure(settings)

    group, version, plural = os.environ["RESOURCE"].split("/")
    steps.operate(group, version, plural, cleanup=cleanup, **OPTIONS)(bring_up)
