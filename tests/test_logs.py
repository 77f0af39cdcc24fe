"""Records of plain logging know their step; events are lines that no name can forge."""

from __future__ import annotations

import json
import logging
import logging.config
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import Retry, Step, StepError
from asteps.integrations.logs import EventLog, StepContext, StepFilter
from asteps.stores.memory import MemoryStore

library = logging.getLogger("tests.some.library")  # which knows nothing of steps


class Lines(logging.Handler):
    """A handler that keeps what a formatter makes of the records."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(run_id)s|%(path)s|%(attempt)s|%(message)s"))
        self.addFilter(StepFilter())
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(self.format(record))


@pytest.fixture
def handler() -> Iterator[Lines]:
    """The handler of the root logger, as an application would have it."""
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("asteps.events").setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
    logging.getLogger("asteps.events").setLevel(logging.NOTSET)


def in_thread() -> None:
    """What runs in a thread."""
    library.info("thread")


async def in_body(s: Step) -> None:
    """A body that logs, and starts a task and a thread that do."""
    library.info("body")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_task)
    await anyio.to_thread.run_sync(in_thread)


async def in_task() -> None:
    """What runs in a task of its own."""
    await checkpoint()
    library.info("task")


async def test_records_know_their_step(handler: Lines) -> None:
    """Records of bodies, of their tasks and threads, and of code between steps say where."""

    async def parent(s: Step) -> None:
        await s.do("child", in_body)
        library.info("between")
        await s.call("plain", in_thread)

    async def root(s: Step) -> None:
        library.info("root")
        await s.do("parent", parent)

    library.info("before")
    await asteps.run(root, store=MemoryStore(), id="vm-42", observers=[StepContext()])
    library.info("after")
    assert handler.lines == [
        "||0|before",
        "vm-42||1|root",
        "vm-42|parent/child|1|body",
        "vm-42|parent/child|1|task",
        "vm-42|parent/child|1|thread",
        "vm-42|parent|1|between",
        "vm-42|parent/plain|1|thread",
        "||0|after",
    ]


@pytest.mark.parametrize("how", ["group", "map", "task group"])
async def test_concurrent_steps_do_not_mix(handler: Lines, how: str) -> None:
    """Steps and runs that take turns each have their own in every record."""

    async def child(s: Step, *_: str) -> None:
        for _turn in range(3):
            library.info("%s", s.path)
            await checkpoint()

    async def root(s: Step) -> None:
        if how == "group":
            async with s.group("g") as g:
                for name in "abc":
                    g.do(name, child)
        elif how == "map":
            await s.map("g", child, "abc")
        else:
            async with anyio.create_task_group() as tasks:
                for name in "abc":
                    tasks.start_soon(s.do, name, child)

    store, context = MemoryStore(), StepContext()

    async def one(id: str) -> None:
        await asteps.run(root, store=store, id=id, observers=[context])

    async with anyio.create_task_group() as tasks:
        for id in ("r1", "r2"):
            tasks.start_soon(one, id)
    assert len(handler.records) == 2 * 3 * 3
    above = "" if how == "task group" else "g/"
    for name in "abc":
        for id in ("r1", "r2"):
            assert handler.lines.count(f"{id}|{above}{name}|1|{above}{name}") == 3


async def test_attempts_are_told(handler: Lines) -> None:
    """A record of a retried body has the number of its attempt; without an id there is none."""

    async def flaky(s: Step) -> None:
        library.info("try")
        if s.attempt < 3:
            raise ConnectionError

    async def root(s: Step) -> None:
        await s.do("flaky", flaky, retry=Retry(attempts=3, delay=1))

    await asteps.run(root, clock=FakeClock(), observers=[StepContext()])
    assert handler.lines == [f"|flaky|{n}|try" for n in (1, 2, 3)]


async def test_a_bare_thread_has_no_step(handler: Lines) -> None:
    """A thread of one's own starts with no context: its records have no step, and no error."""

    async def body(s: Step) -> None:
        thread = threading.Thread(target=in_thread)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)

    await asteps.run(body, observers=[StepContext()])
    assert handler.lines == ["||0|thread"]


async def test_what_a_record_says_itself_stays(handler: Lines) -> None:
    """``extra=`` wins; the library's own record of a broken observer names its run and step."""

    def broken(event: asteps.Event) -> None:
        if isinstance(event, asteps.StepDone) and event.path:
            raise RuntimeError("down")

    async def body(s: Step) -> None:
        library.info("mine", extra={"run_id": "mine"})

    async def root(s: Step) -> None:
        await s.do("a", body)

    await asteps.run(root, store=MemoryStore(), id="r", observers=[broken, StepContext()])
    mine, own = handler.lines
    assert mine == "mine||0|mine"
    assert own.startswith("r|a|0|observer ")


def test_dict_config_knows_the_filter(capsys: pytest.CaptureFixture[str]) -> None:
    """The filter can be named in a configuration."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "filters": {"steps": {"()": "asteps.integrations.logs.StepFilter"}},
                "formatters": {"f": {"format": "%(run_id)s|%(path)s|%(message)s"}},
                "handlers": {
                    "out": {
                        "class": "logging.StreamHandler",
                        "stream": "ext://sys.stdout",
                        "filters": ["steps"],
                        "formatter": "f",
                    }
                },
                "root": {"level": "INFO", "handlers": ["out"]},
            }
        )
        library.info("hello")
    finally:
        root.handlers, root.level = handlers, level
    assert capsys.readouterr().out == "||hello\n"


# --- events ---------------------------------------------------------------------------------------


async def test_events_are_lines(handler: Lines) -> None:
    """Each event is one record of its level, with the run, the path and the attempt."""
    clock = FakeClock()

    async def flaky(s: Step) -> None:
        if s.attempt < 2:
            raise ConnectionError("no route")

    async def bad(s: Step) -> None:
        raise ValueError("bad")

    async def root(s: Step) -> None:
        await s.do("flaky", flaky, retry=Retry(attempts=2, delay=1, jitter=0))
        with suppress(StepError):
            await s.do("bad", bad)
        await s.do("info", lambda s: s.save_info(1), returns=None)
        s.pending(60, "tomorrow")

    await asteps.reconcile(
        root, store=MemoryStore(), id="r", clock=clock, max_wait=2, observers=[EventLog()]
    )
    found = [(r.levelname, r.__dict__["path"], r.__dict__["attempt"]) for r in handler.records]
    assert found == [
        ("DEBUG", "", 0),
        ("DEBUG", "", 1),
        ("DEBUG", "flaky", 1),
        ("WARNING", "flaky", 1),
        ("DEBUG", "flaky", 2),
        ("INFO", "flaky", 0),
        ("DEBUG", "bad", 1),
        ("ERROR", "bad", 1),
        ("DEBUG", "info", 1),
        ("DEBUG", "info", 0),
        ("INFO", "info", 0),
        ("INFO", "", 0),
        ("INFO", "", 0),
    ]
    messages = [r.getMessage() for r in handler.records]
    assert messages[0] == "run 'r': a pass began, epoch 1"
    assert messages[1] == "run 'r': began, attempt 1"
    assert messages[3].startswith("run 'r', step 'flaky': attempt 1 failed, the next is due at ")
    assert messages[3].endswith(" UTC: no route")
    assert messages[5] == "run 'r', step 'flaky': done"
    assert messages[7] == "run 'r', step 'bad': failed at attempt 1: bad"
    assert messages[9] == "run 'r', step 'info': saved its info"
    assert messages[11].endswith(" UTC: tomorrow")
    assert messages[12] == "run 'r': the pass ended, pending"
    assert {r.__dict__["run_id"] for r in handler.records} == {"r"}


async def test_no_text_can_forge_a_line(handler: Lines) -> None:
    """Line breaks, escapes and reversals in what a failure says are escaped, and it is cut."""

    async def bad(s: Step) -> None:
        raise ValueError("a\nrun 'r': done\x1b[31m\u202e %s " + "x" * 10_000)

    with suppress(StepError):
        await asteps.run(bad, store=MemoryStore(), id="r %d", observers=[EventLog()])
    (line,) = [r.getMessage() for r in handler.records if r.levelname == "ERROR"]
    assert line.startswith(
        "run 'r %d': failed at attempt 1: a\\nrun 'r': done\\x1b[31m\\u202e %s xxx"
    )
    assert len(line) < 700
    assert line.isprintable()


async def test_another_logger() -> None:
    """Events go to the logger that was given, and cost nothing below its level."""
    logger, lines = logging.getLogger("tests.mine"), Lines()
    logger.setLevel(logging.WARNING)
    logger.addHandler(lines)

    async def root(s: Step) -> None:
        await s.do("bad", lambda s: s.fail("no"), returns=None)

    with suppress(StepError):
        await asteps.run(root, observers=[EventLog(logger)])
    assert lines.lines == [
        "|bad|1|run, step 'bad': failed at attempt 1: no",
        "||1|run: failed at attempt 1: bad: no",
    ]


async def test_records_can_be_json(handler: Lines) -> None:
    """What the filter adds is plain data: a formatter that writes JSON can take it as it is."""

    async def body(s: Step) -> None:
        library.info("here")

    await asteps.run(body, store=MemoryStore(), id="r", observers=[StepContext()])
    (record,) = handler.records
    fields: dict[str, Any] = {k: record.__dict__[k] for k in ("run_id", "path", "attempt")}
    assert json.loads(json.dumps(fields)) == {"run_id": "r", "path": "", "attempt": 1}
