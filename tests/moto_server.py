"""A pretended AWS in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3

__all__ = ["KEYS", "Moto", "started_moto"]

KEYS = {
    "region_name": "us-east-1",
    "aws_access_key_id": "nobody",
    "aws_secret_access_key": "nothing",
}

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Moto:
    """The pretended AWS, over HTTP.

    Attributes:
        url: The endpoint of all its services.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._clients: dict[str, Any] = {}
        self._set: set[str] = set()

    def client(self, service: str) -> Any:
        """A boto3 client, always the same one; the first time it reads files."""
        if service not in self._clients:
            client = self._clients[service] = boto3.client(service, endpoint_url=self.url, **KEYS)
            _ = client.waiter_names
        return self._clients[service]

    def finishes_at_check(self, number: int, model: str) -> None:
        """Let what is made from now on change its state when it is looked at for the nth time."""
        transition = {"progression": "manual", "times": number}
        self._post("state-manager/set-transition", {"model_name": model, "transition": transition})
        self._set.add(model)

    def reset(self) -> None:
        """Forget everything."""
        self._post("reset", {})
        for model in self._set:
            self._post("state-manager/unset-transition", {"model_name": model})
        self._set.clear()

    def _post(self, path: str, body: object) -> None:
        request = urllib.request.Request(
            f"{self.url}/moto-api/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()


@contextmanager
def started_moto() -> Iterator[Moto]:
    """Start the server; it ends with the block, and with this process, whatever happens to that."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"},  # that takes seconds
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Moto(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.stdin.close()
