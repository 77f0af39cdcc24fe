"""A pretended cloud: it takes its time, fails now and then, and remembers what it was asked.

It stands in for the client of a real one. What it has made is kept in a small JSON file, so that
it outlives the process that asked for it, as a real cloud does. The files beside this one are the
examples to read, `move_to_vpc.py` first; run this one to see what that one has made so far.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import anyio


class ThrottledError(Exception):
    """Too many requests: try again in a moment."""


@dataclass
class Memory:
    """What the cloud knows, as it stands in the file."""

    made: dict[str, str] = field(
        default_factory=dict
    )  # what there is, by the token it was made with
    calls: dict[str, int] = field(default_factory=dict)  # how often each call was made


class Cloud:
    """The client of the pretended cloud.

    Args:
        file: Where the cloud keeps what it knows.
        pace: Seconds that its usual call takes.
    """

    def __init__(self, file: Path, pace: float = 1.0) -> None:
        self._file = file
        self._pace = pace
        self._known = Memory(**json.loads(file.read_text())) if file.exists() else Memory()

    async def create(self, kind: str, name: str, token: str) -> str:
        """Make something; the same token always gets the same thing, made once."""
        await self._work(f"create {kind} {name}", throttled=name in {"gateway", "vm-2"})
        return self._make(token, f"{kind}-{len(self._known.made) + 1}-{name}")

    async def migrate(self, instance: str, vpc: str, token: str) -> str:
        """Move an instance into the VPC."""
        await self._work(f"migrate {instance}", 1.5, throttled=instance == "vm-3")
        return self._make(token, f"{instance} in {vpc}")

    async def start_disk(self, name: str, size: int, token: str) -> str:
        """Begin to make a disk; the same token always gives the same one.

        Raises:
            ValueError: A disk has 1 GB at least.
        """
        await self._work(f"start disk of {name}", 0.3, throttled=name == "blog")
        if size < 1:
            raise ValueError(f"a disk of {size} GB cannot be made")
        return self._make(token, f"disk-{len(self._known.made) + 1}-{name}")

    async def disk_is_ready(self, disk: str) -> bool:
        """Whether it has been made; it takes some time."""
        await anyio.sleep(self._pace / 20)
        return self._count(f"describe {disk}") > 2

    async def check_account(self) -> str:
        """Who pays. The first call is never answered."""
        if self._count("check account") == 1:
            await anyio.sleep_forever()
        await anyio.sleep(self._pace / 2)
        return "account 42"

    async def addresses(self) -> list[str]:
        """All addresses of the network."""
        await self._work("addresses", 0.5)
        return [f"10.0.0.{n}" for n in range(1, 6)]

    async def answers(self, address: str) -> bool:
        """Whether this address is in use; the higher its number, the longer it takes to come up."""
        await anyio.sleep(self._pace / 20)
        return self._count(f"ping {address}") > int(address.rpartition(".")[2]) // 2

    async def _work(self, call: str, length: float = 1.0, *, throttled: bool = False) -> None:
        """Take time; the first of the calls that are to be throttled fails."""
        first = self._count(call) == 1
        if throttled and first:
            await anyio.sleep(self._pace / 4)
            raise ThrottledError(f"{call}: too many requests")
        await anyio.sleep(self._pace * length)

    def _count(self, call: str) -> int:
        calls = self._known.calls
        calls[call] = calls.get(call, 0) + 1
        self._remember()
        return calls[call]

    def _make(self, token: str, what: str) -> str:
        made = self._known.made.setdefault(token, what)
        self._remember()
        return made

    def _remember(self) -> None:
        """Write the file so that it is always whole: a new one takes the place of the old one."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(asdict(self._known), indent=1))
        new.replace(self._file)


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:] or ["move_to_vpc.cloud.json"]):
        made = Memory(**json.loads(file.read_text())).made if file.exists() else {}
        print(f"According to {file}, {len(made)} things were made:")
        for token, what in made.items():
            print(f"  {what}, with the token {token}")
