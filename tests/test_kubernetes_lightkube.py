"""What the lightkube transport makes of a server's answers; no server is needed for that."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import pytest
from anyio import to_thread
from lightkube import AsyncClient, KubeConfig
from lightkube.config.models import Cluster, User

from asteps._store import Summary
from asteps.errors import StoreRefusedError
from asteps.stores.kubernetes import (
    BusyServerError,
    DeniedError,
    GoneError,
    InvalidError,
    LightkubeTransport,
    ObjectRef,
    StaleError,
    StatusStore,
    TooLargeError,
    TransportError,
    UnknownFateError,
)

REF = ObjectRef.parse("example.com/v1/databases/shop/orders")
OBJECT = {
    "apiVersion": "example.com/v1",
    "kind": "Database",
    "metadata": {"name": "orders", "namespace": "shop", "uid": "u1", "resourceVersion": "7"},
}

Answer = Callable[[httpx2.Request], httpx2.Response]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[LightkubeTransport]:
    """A transport whose server answers so."""
    config = KubeConfig.from_one(cluster=Cluster("http://server.test"), user=User(token="t"))
    made = partial(AsyncClient, config=config, transport=httpx2.MockTransport(answer))
    client = await to_thread.run_sync(made)  # it loads certificates
    try:
        yield LightkubeTransport(client)
    finally:
        await client.close()


def status(code: int, message: str) -> httpx2.Response:
    """An error as API servers send it."""
    return httpx2.Response(
        code, json={"kind": "Status", "apiVersion": "v1", "code": code, "message": message}
    )


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (400, "bad", InvalidError),
        (401, "who", DeniedError),
        (403, "no", DeniedError),
        (404, "none", GoneError),
        (409, "modified", StaleError),
        (413, "large", TooLargeError),
        (422, "invalid", InvalidError),
        (429, "later", BusyServerError),
        (500, "etcdserver: request is too large", TooLargeError),
        (500, "rpc error: code = ResourceExhausted desc = larger than max", TooLargeError),
        (500, "etcdserver: leader changed", UnknownFateError),
        (503, "soon", UnknownFateError),
        (504, "late", UnknownFateError),
    ],
)
async def test_each_answer_says_what_was_written(
    code: int, message: str, kind: type[TransportError]
) -> None:
    """Each code has the class that says so, and the server's words stay."""
    async with answering(lambda _: status(code, message)) as transport:
        for call in (transport.get(REF), transport.patch_status(REF, {}), transport.patch(REF, {})):
            with pytest.raises(TransportError, match=f"^{code} to .* {REF}: .*{message}") as caught:
                await call
            assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx2.ConnectError("refused"), BusyServerError),
        (httpx2.ConnectTimeout("slow"), BusyServerError),
        (httpx2.PoolTimeout("full"), BusyServerError),
        (httpx2.ReadTimeout("slow"), UnknownFateError),
        (httpx2.RemoteProtocolError("hung up"), UnknownFateError),
    ],
)
async def test_no_answer_says_whether_anything_was_sent(
    raised: Exception, kind: type[TransportError]
) -> None:
    """Without a connection nothing was written; after that nobody knows."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        raise raised

    async with answering(answer) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.patch_status(REF, {})
        assert type(caught.value) is kind


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", b'{"metadata":'])
async def test_answer_that_is_no_object(answer: bytes) -> None:
    """Something in between may answer 200, too."""
    async with answering(lambda _: httpx2.Response(200, content=answer)) as transport:
        with pytest.raises(UnknownFateError):
            await transport.patch_status(REF, {})


async def test_strict_server_without_our_field() -> None:
    """Servers from 1.25 on repeat the whole object first: what is wrong is said, and not that."""
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        if request.method == "GET":
            return httpx2.Response(200, json=OBJECT)
        patched: dict[str, Any] = {**OBJECT, **json.loads(request.content)}
        repeated = json.dumps(json.dumps(patched))
        unknown = 'unknown field "status.asteps", unknown field "status.phase"'
        said = f' "" is invalid: patch: Invalid value: {repeated}: strict decoding error: {unknown}'
        return status(422, said)

    async with answering(answer) as transport:
        store = StatusStore(REF, transport=transport, view=lambda _: {"phase": "Running"})
        with pytest.raises(StoreRefusedError, match="refuses fields of it") as caught:
            await store.save(
                "shop/orders",
                {"": b'"the \\"secret\\" of it"', "a": b'"%s"' % (b"x" * 100_000)},
                expected=None,
                epoch=1,
                write_id="w1",
                summary=Summary("f", "proceeding", 1, None, 1.0, 1.0),
            )
    assert "`asteps crd` prints the snippet" in str(caught.value)
    cause = str(caught.value.__cause__)
    assert cause.endswith('unknown field "status.asteps", unknown field "status.phase"')
    assert "Invalid value: (the object): strict" in cause
    assert "secret" not in cause
    assert [request.method for request in asked] == ["GET", "PATCH"]
    assert asked[1].url.params["fieldValidation"] == "Strict"
