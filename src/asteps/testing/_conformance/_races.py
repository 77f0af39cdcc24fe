"""Many tasks, several clients, one run."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

import anyio
from anyio.lowlevel import checkpoint

from ..._store import Store, StoredRun
from ...errors import ConflictError
from ._base import Another, Kit, a_summary, save

CLIENTS = 3
TASKS = 4  # of each client


class RaceKit(Kit):
    """Whoever loses hears of it; nobody's acknowledged save is lost."""

    async def test_one_creator_wins(self, another: Another) -> None:
        """Of many that create one run at the same time, one does; the others conflict."""
        clients = [await another() for _ in range(CLIENTS)]
        for n in range(4):
            await self._one_winner(clients, f"run-{n}", None)

    async def test_one_saver_wins(self, another: Another) -> None:
        """Of many saves that expect one revision, one lands; the others conflict."""
        clients = [await another() for _ in range(CLIENTS)]
        revision: str | None = await save(clients[0], "run", {"winner": b"-1"}, None)
        for _ in range(5):
            revision = await self._one_winner(clients, "run", revision)

    async def _one_winner(self, clients: list[Store], id: str, expected: str | None) -> str:
        won: dict[int, str] = {}
        lost: list[int] = []

        async def compete(store: Store, me: int) -> None:
            changes = {"winner": b"%d" % me, f"by-{me}": b"1"}
            try:
                won[me] = await save(store, id, changes, expected)
            except ConflictError:
                lost.append(me)

        before = await clients[0].load(id)
        async with anyio.create_task_group() as tg:
            for me in range(CLIENTS * TASKS):
                tg.start_soon(compete, clients[me % CLIENTS], me)
        assert len(won) == 1, f"{len(won)} saves of one revision were acknowledged: {won}"
        assert len(lost) == CLIENTS * TASKS - 1
        [(winner, revision)] = won.items()
        records = dict(before.records) if before else {}
        records |= {"winner": b"%d" % winner, f"by-{winner}": b"1"}
        for client in clients:
            assert await client.load(id) == StoredRun(records, revision, a_summary())
        return revision

    async def test_no_update_is_lost(self, another: Another) -> None:
        """A counter that many increment, each retrying after a conflict, counts them all."""
        clients = [await another() for _ in range(CLIENTS)]
        await save(clients[0], "run", {"count": b"0"}, None)
        seen: list[str] = []

        async def increment(store: Store) -> None:
            # Each conflict means that another one of them was counted, so this always suffices.
            for _ in range(2 * CLIENTS * TASKS):
                run = await store.load("run")
                assert run is not None
                count = int(run.records["count"]) + 1
                try:
                    seen.append(await save(store, "run", {"count": b"%d" % count}, run.revision))
                except ConflictError:
                    await checkpoint()
                else:
                    return

        async with anyio.create_task_group() as tg:
            for n in range(CLIENTS * TASKS):
                tg.start_soon(increment, clients[n % CLIENTS])
        run = await clients[0].load("run")
        assert run is not None
        assert run.records == {"count": b"%d" % (CLIENTS * TASKS)}
        assert run.revision == seen[-1] or run.revision in seen
        assert len(set(seen)) == CLIENTS * TASKS, "two saves were given one revision"

    async def test_load_is_one_consistent_reading(self, another: Another) -> None:
        """A load beside a saver sees all of a save or nothing of it, under its own revision."""
        writer, *readers = [await another() for _ in range(CLIENTS)]
        made: dict[str, int] = {}
        finished = anyio.Event()
        keys = [f"k{n}" for n in range(20)]

        async def write() -> None:
            revision = None
            for n in range(25):
                changes: dict[str, bytes | None] = dict.fromkeys(keys, b"%d" % n)
                changes[f"odd-{n - 1}"] = None
                changes[f"odd-{n}"] = b"%d" % n
                revision = await save(writer, "run", changes, revision, summary=a_summary(n + 1))
                made[revision] = n
            finished.set()

        readings: list[StoredRun] = []

        async def read(store: Store) -> None:
            while not finished.is_set():
                run = await store.load("run")
                if run is not None:
                    readings.append(run)
                await checkpoint()

        async with anyio.create_task_group() as tg:
            tg.start_soon(write)
            for store in (writer, *readers):
                tg.start_soon(read, store)
        for run in readings:
            n = made[run.revision]
            whole = dict.fromkeys([*keys, f"odd-{n}"], b"%d" % n)
            assert run == StoredRun(whole, run.revision, a_summary(n + 1))

    async def test_delete_and_save_do_not_both_win(self, another: Another) -> None:
        """Of a delete and a save that expect one revision, one is done; the other conflicts."""
        clients = [await another() for _ in range(2)]
        for n in range(12):
            id = f"run-{n}"
            expected = await save(clients[0], id, {"k": b"0"}, None)
            won: dict[str, str] = {}
            lost: list[str] = []

            async def change(
                store: Store, id: str, expected: str, won: dict[str, str], lost: list[str]
            ) -> None:
                try:
                    won["save"] = await save(store, id, {"k": b"1"}, expected)
                except ConflictError:
                    lost.append("save")

            async def remove(
                store: Store, id: str, expected: str, won: dict[str, str], lost: list[str]
            ) -> None:
                try:
                    await store.delete(id, expected=expected)
                    won["delete"] = ""
                except ConflictError:
                    lost.append("delete")

            async with anyio.create_task_group() as tg:
                for act, store in zip(
                    (change, remove)[:: 1 if n % 2 else -1], clients, strict=True
                ):
                    tg.start_soon(act, store, id, expected, won, lost)
                    for _ in range(n // 2):
                        await checkpoint()  # a head start, longer each time
            assert (len(won), len(lost)) == (1, 1), f"won: {[*won]}, lost: {lost}"
            stored = await clients[0].load(id)
            if "save" in won:
                assert stored == StoredRun({"k": b"1"}, won["save"], a_summary())
            else:
                assert stored is None

    async def test_identical_saves_at_once_are_one(self, another: Another) -> None:
        """The identical save sent twice at the same time is written once, and both hear of it."""
        clients = [await another() for _ in range(CLIENTS)]
        expected = None
        for n in range(4):
            answers: list[str] = []

            async def send(store: Store, n: int, expected: str | None, answers: list[str]) -> None:
                answers.append(
                    await save(store, "run", {"k": b"%d" % n}, expected, write_id=f"write-{n}")
                )

            async with anyio.create_task_group() as tg:
                for store in clients * 2:
                    tg.start_soon(send, store, n, expected, answers)
            assert len(set(answers)) == 1, f"one save made several revisions: {answers}"
            expected = answers[0]
            assert await clients[0].load("run") == StoredRun(
                {"k": b"%d" % n}, expected, a_summary()
            )
