"""Runs in a web service: awaited in a request, or in the background beyond requests and restarts.

    pip install uvicorn
    python examples/in_a_service.py

`Service` is the example: an ASGI application without a framework, for any server of such.

    POST /quick/{id}    runs to its end; the same id gives the same answer, also after a restart
    POST /moves/{id}    begins a run in the background: 202, once the run is in the store
    GET  /moves/{id}    what it has come to

As a script it serves itself, makes some requests, is stopped and started in the middle of a run,
and ends. Kill it and start it again: it goes on with what was in the background.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simulated_cloud import Cloud

import asteps
from asteps import State, Step
from asteps.stores.sqlite import SQLiteStore

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DB = Path("in_a_service.db")


# --- the steps ------------------------------------------------------------------------------------


async def quick(s: Step, cloud: Cloud, name: str) -> str:
    return await s.do("address", create, cloud, "address", name)


async def move(s: Step, cloud: Cloud, name: str) -> str:
    async def check(disk: str) -> str | None:
        return disk if await cloud.disk_is_ready(disk) else None

    start = partial(cloud.start_disk, name, 10, token=s.token_for("disk"))
    disk = await s.poll("disk", start, check, every=0.3)
    await s.sleep("let it settle", 0.3)
    return await s.do("server", create, cloud, "server", f"{name}-on-{disk}")


async def create(s: Step, cloud: Cloud, kind: str, name: str) -> str:
    return await cloud.create(kind, name, token=s.token)


# --- the service ----------------------------------------------------------------------------------


class Service:
    """An ASGI application; everything that it has to do with asteps is in this class.

    Args:
        db: The SQLite file of the runs.
        cloud: The client of the cloud.
    """

    def __init__(self, db: Path, cloud: Cloud) -> None:
        self._db = db
        self._cloud = cloud
        self._store: SQLiteStore
        self._tasks: asyncio.TaskGroup
        self._moves: dict[str, Move] = {}  # that this process is at

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request, or the application's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, answer = await self._answer(scope["method"], scope["path"])
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _live(self, receive: Receive, send: Send) -> None:
        """From the server's start to its end, in one task: the store and the tasks belong to it."""
        await receive()  # lifespan.startup
        async with SQLiteStore(self._db) as self._store, asyncio.TaskGroup() as self._tasks:
            async for name in self._unfinished():
                say(f"  goes on  move of {name}")
                self._begin(name)
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown: there are no requests any more
            for move in self._moves.values():
                move.task.cancel()  # nothing fails by it, and the next start goes on
        await send({"type": "lifespan.shutdown.complete"})

    async def _unfinished(self) -> AsyncIterator[str]:
        """The moves that an earlier process did not finish, however it ended."""
        last = None
        while runs := await asteps.list_runs(self._store, name="move", after=last):
            for run in runs:
                if run.status not in ("done", "failed"):
                    yield run.id.removeprefix("move-")
            last = runs[-1].id

    # -- requests --

    async def _answer(self, method: str, path: str) -> tuple[int, object]:
        try:
            match method, path.strip("/").split("/"):
                case "POST", ["quick", name]:
                    return await self._quick(name)
                case "POST", ["moves", name]:
                    return await self._start_move(name)
                case "GET", ["moves", name]:
                    return await self._look_at_move(name)
                case _:
                    return 404, {"error": "there is no such place"}
        except asteps.BusyError as busy:  # another request or another process is at it
            return 409, {"error": str(busy)}
        except asteps.StoreError as lost:  # nothing has failed: the same request goes on later
            return 503, {"error": str(lost)}

    async def _quick(self, name: str) -> tuple[int, object]:
        id = f"quick-{name}"
        try:
            address = await asteps.run(quick, self._cloud, name, store=self._store, id=id)
        except asteps.StepError as error:
            return 500, {"error": str(error)}
        return 200, {"address": address}

    async def _start_move(self, name: str) -> tuple[int, object]:
        move = self._moves.get(name) or self._begin(name)
        await move.accepted.wait()
        if move.task.done() and (error := move.task.result()):
            raise error
        return 202, {"see": f"/moves/{name}"}

    async def _look_at_move(self, name: str) -> tuple[int, object]:
        state = await asteps.load_state(self._store, f"move-{name}")
        if state is None:
            return 404, {"error": "there is no such move"}
        steps = {path: came_to(step) for path, step in state.walk() if path}
        return 200, {"status": came_to(state), "steps": steps}

    # -- what goes on in the background --

    def _begin(self, name: str) -> Move:
        accepted = asyncio.Event()
        task = self._tasks.create_task(self._carry_out(name, accepted))
        self._moves[name] = Move(task, accepted)
        return self._moves[name]

    async def _carry_out(self, name: str, accepted: asyncio.Event) -> asteps.StoreError | None:
        try:
            await asteps.run(
                move,
                self._cloud,
                name,
                store=self._store,
                id=f"move-{name}",
                # An observer is told of what is in the store: from then on it can be promised.
                observers=[lambda _: accepted.set()],
            )
        except asteps.StepError:
            pass  # whoever asks is told
        except asteps.StoreError as error:  # BusyError, too
            say(f"  stopped  move of {name}: {error}")
            return error
        finally:
            del self._moves[name]
            accepted.set()
        return None


@dataclass
class Move:
    """One that this process is at."""

    task: asyncio.Task[asteps.StoreError | None]
    accepted: asyncio.Event  # it is in the store, or over


def came_to(step: State) -> str:
    words = {"done": step.done, "failed": step.failed, "pending": step.pending}
    return next((word for word, holds in words.items() if holds), "proceeding")


def say(text: str) -> None:
    print(text, flush=True)  # at once, for whoever kills this process wants to have seen it


app = Service(DB, Cloud(DB.with_suffix(".cloud.json"), pace=0.5))


# --- the script: a server, and somebody who asks --------------------------------------------------


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    """The service at a free port, which this gives."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def ask(port: int, method: str, path: str) -> Any:
    """Make a request, in a thread: the loop has a server to run."""

    def request() -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    status, answer = await asyncio.to_thread(request)
    say(f"{method:>4} {path}: {status} {json.dumps(answer)}")
    return answer


async def main() -> None:
    say(f"What is done is kept in {DB}. Press Ctrl-C, or kill -9 {os.getpid()}, whenever you like;")
    say("then start it again.")
    async with served() as port:
        await ask(port, "POST", "/quick/one")
        await ask(port, "POST", "/quick/one")  # is not run again
        await asyncio.gather(*(ask(port, "POST", "/quick/two") for _ in range(2)))
        await ask(port, "POST", "/moves/web")
        await ask(port, "GET", "/moves/web")
        await asyncio.sleep(0.5)
    say("The service was stopped in the middle of that, and is started again.")
    async with served() as port:
        while True:
            found = await ask(port, "GET", "/moves/web")
            if found["status"] in ("done", "failed"):
                break
            await asyncio.sleep(0.3)


if __name__ == "__main__":
    try:
        import uvicorn
    except ImportError:
        sys.exit("This script serves itself with uvicorn: pip install uvicorn")
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        say("Stopped. Everything that was done is kept: start it again to go on.")
        sys.exit(130)
