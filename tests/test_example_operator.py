"""The operator of the examples, on a real API server: the session that the page shows."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cli_tools import asteps_command
from kubectl import kubectl
from kubernetes_server import Kube
from msgspec import yaml
from processes import EXAMPLES

from asteps.integrations._kubernetes_crd import crd_yaml, rbac_yaml

pytestmark = pytest.mark.kubernetes

PAGE = Path(__file__).parent.parent / "docs" / "kubernetes.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEAST = 18  # commands: keeps the test from passing on nothing
PATIENCE = 60.0  # seconds for what the page shows to come about
PACE = 0.3

GROUP, ACCOUNT, NAMESPACE = "example.com", "databases-operator", "default"


def commands() -> list[tuple[str, str]]:
    """The commands of the page's session, in order, each with what it shows."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


MASKS = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "TIME"),
    (r" \(\d+ checks meanwhile\)", ""),
    (r"just now", "T ago"),
    (r"\d+(\.\d+)? (ms|s|min)( \d+ s)?\b", "T"),
    (r"\b(\d+[smh])+\b", "T"),
    (r"(?<=waited )T.*", "T"),
    (r" {2,}", " "),
    (r" +$", ""),
)


def masked(command: str, output: str) -> str:
    """An output without what differs from time to time."""
    for pattern, instead in MASKS:
        output = re.sub(pattern, instead, output, flags=re.MULTILINE)
    lines = output.strip().splitlines()
    return "\n".join(sorted(lines) if "get events" in command else lines)


class Session:
    """A terminal in the example's directory, on a cluster of the test's own.

    The files are those of the example, but for the names that tests must not share, and a cloud in
    which what is begun takes until the test has seen it.
    """

    def __init__(self, kube: Kube, directory: Path) -> None:
        self.kube = kube
        self.directory = directory
        self.operator: subprocess.Popen[bytes] | None = None
        self._env = {
            **os.environ,
            "PACE": str(PACE),
            "KUBECONFIG": str(directory / "kubeconfig"),
        }
        for file in (EXAMPLES / "operator").iterdir():
            if file.is_file():
                text = self.here(file.read_text(encoding="utf-8"))
                (directory / file.name).write_text(text, encoding="utf-8")
        self._replace("pretended_cloud.py", "duration * self.pace", "1e9")
        self._replace("pretended_cloud.py", "2 * self.pace", "1e9")
        self._replace("with_kopf.py", "max_wait=1", "max_wait=0")
        self._replace("without_kopf.py", "max_wait=1", "max_wait=0")

    def _replace(self, file: str, text: str, instead: str) -> None:
        path = self.directory / file
        before = path.read_text(encoding="utf-8")
        assert text in before, file
        path.write_text(before.replace(text, instead), encoding="utf-8")

    def here(self, text: str) -> str:
        """What the page says, with the names of this cluster."""
        text = text.replace(ACCOUNT, f"op-{self.kube.namespace}").replace(GROUP, self.kube.group)
        for before in ("-n ", "/databases/", "namespace: "):
            text = text.replace(f"{before}{NAMESPACE}", f"{before}{self.kube.namespace}")
        return text

    def there(self, text: str) -> str:
        """What is shown here, with the names of the page."""
        text = text.replace(f"op-{self.kube.namespace}", ACCOUNT)
        return text.replace(self.kube.group, GROUP).replace(self.kube.namespace, NAMESPACE)

    def act_as_the_operator(self) -> None:
        """Let what is started be the account of rbac.yaml, with its rights and no other."""
        account = f"serviceaccounts/op-{self.kube.namespace}"
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 3600},
        }
        path = f"/api/v1/namespaces/{self.kube.namespace}/{account}/token"
        words = ("create", "--raw", path, "-f", "-")
        token = json.loads(kubectl(self.kube, *words, given=json.dumps(asked)))["status"]["token"]
        config = yaml.decode(Path(self.kube.kubeconfig).read_text(encoding="utf-8"))
        config["users"] = [
            {"name": each["name"], "user": {"token": token}} for each in config["users"]
        ]
        (self.directory / "kubeconfig").write_bytes(yaml.encode(config))

    def start(self, *words: str) -> None:
        """Start the operator."""
        self.act_as_the_operator()
        with (self.directory / "operator.log").open("ab") as log:
            self.operator = subprocess.Popen(
                words, cwd=self.directory, env=self._env, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        """Kill the operator, if there is one."""
        if self.operator is not None:
            self.operator.send_signal(signal.SIGKILL)
            self.operator.wait()
            self.operator = None

    def say(self, command: str) -> str:
        """What a command writes, errors included."""
        words = shlex.split(self.here(command))
        if words[0] == "asteps":
            words = asteps_command(*words[1:])
        else:
            assert words[0] == "kubectl"
            words[1:1] = ["-n", self.kube.namespace]
            # Other tests have databases, too, in groups of their own.
            words = [
                re.sub(r"^databases?(?=$|/)", f"databases.{self.kube.group}", w) for w in words
            ]
            if words[3] in {"patch", "delete", "wait"}:
                words.append("--request-timeout=30s")
        done = subprocess.run(
            words,
            cwd=self.directory,
            env={**os.environ, "KUBECONFIG": self.kube.kubeconfig, "PYTHONIOENCODING": "utf-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
        )
        return self.there(done.stdout)

    def finish(self) -> None:
        """Have the cloud finish what it has begun."""
        file = self.directory / "cloud.db"
        if file.exists():
            with closing(sqlite3.connect(file, timeout=30)) as db, db:
                for column in ("ready_at", "gone_at"):
                    db.execute(f"UPDATE things SET {column} = min({column}, ?)", (time.time(),))

    def calls(self) -> list[str]:
        """What the cloud was asked to make."""
        with closing(sqlite3.connect(self.directory / "cloud.db", timeout=30)) as db:
            found = db.execute("SELECT what FROM calls WHERE what LIKE 'make %' ORDER BY at")
            return [self.there(what) for (what,) in found]

    def things(self) -> int:
        """How many things there are that nobody has deleted."""
        with closing(sqlite3.connect(self.directory / "cloud.db", timeout=30)) as db:
            (count,) = db.execute("SELECT count(*) FROM things WHERE gone_at IS NULL").fetchone()
            return int(count)

    def log(self) -> str:
        """What the operators have said."""
        file = self.directory / "operator.log"
        return file.read_text(encoding="utf-8")[-5_000:] if file.exists() else ""


@pytest.fixture
def session(kube: Kube, tmp_path: Path) -> Iterator[Session]:
    """A terminal; what it has made in the cluster is taken away in the end."""
    session = Session(kube, tmp_path)
    try:
        yield session
    finally:
        session.kill()
        files = ("-f", str(tmp_path / "crd.yaml"), "-f", str(tmp_path / "rbac.yaml"))
        kubectl(kube, "delete", "--wait=false", "--ignore-not-found", *files, may_fail=True)


def test_the_files_are_those_of_the_command() -> None:
    """The example's definition and rules are what `asteps crd` prints."""
    directory = EXAMPLES / "operator"
    assert (directory / "crd.yaml").read_text() == crd_yaml("example.com/v1/databases")
    assert (directory / "rbac.yaml").read_text() == rbac_yaml("example.com/v1/databases", kopf=True)


def test_the_session_of_the_page(session: Session) -> None:
    """Killed, edited, refused and deleted: kubectl shows what the page says, step by step."""
    said = commands()
    assert len(said) >= LEAST
    for command, shown in said:
        words = shlex.split(session.here(command))
        if words[0] == "kill":
            session.kill()
        elif words[0] == "kopf":
            session.start(sys.executable, "-m", *words[:-1])
        else:
            _await(session, command, shown)
    assert session.calls() == [
        "make disk-10gb-1 for default/shop",
        "make server-v16-2 for default/shop",
        "make server-v17-3 for default/shop",
        "make disk-10gb-4 for default/shop",
        "make server-v17-5 for default/shop",
    ]
    assert session.things() == 0


def _await(session: Session, command: str, shown: str) -> None:
    """Say it until it shows what the page shows; what changes an object is said once."""
    expected, deadline = masked(command, shown), time.monotonic() + PATIENCE
    waits = any(f" {phase} " in expected for phase in ("Waiting", "Deleting"))
    seen: list[str] = []
    session.finish()  # what the command before has shown in the making
    while True:
        if not waits:
            session.finish()
        found = masked(command, session.say(command))
        seen += [] if seen[-1:] == [found] else [found]
        if found == expected:
            return
        # What has just been defined is not served at once.
        again = any(f" {verb} " in f" {command} " for verb in ("get", "show", "wait", "apply"))
        if not again or time.monotonic() > deadline:
            pytest.fail(f"{command}\n{expected}\n--- was:\n{seen}\n--- log:\n{session.log()}")
        time.sleep(0.05)


def test_without_kopf(session: Session) -> None:
    """The plain loop brings the same database up, and away, and with the same rights."""
    session.say("kubectl apply -f crd.yaml -f rbac.yaml")
    _await(session, "kubectl apply -f shop.yaml", "database.example.com/shop created")
    session.start(sys.executable, "without_kopf.py", session.kube.namespace)
    get = "kubectl get databases"
    waiting = "NAME  PHASE  STEP  PROGRESS  READY  AGE\nshop  Waiting  disk  0/1  False  T"
    _await(session, get, waiting)
    session.kill()
    session.start(sys.executable, "without_kopf.py", session.kube.namespace)
    _await(session, get, "NAME PHASE STEP PROGRESS READY AGE\nshop Succeeded 5/5 True T")
    session.say("kubectl delete database shop --wait=false")
    _await(session, get, "No resources found in default namespace.")
    assert session.calls() == [
        "make disk-10gb-1 for default/shop",
        "make server-v16-2 for default/shop",
    ]
    assert session.things() == 0


def test_the_cloud_says_what_there_is(session: Session) -> None:
    """The pretended cloud tells what was made, and what was asked for; before that, nothing."""
    command = [sys.executable, "pretended_cloud.py"]

    def said() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=session.directory, capture_output=True, text=True, check=False, timeout=30
        )

    assert said().stderr == "nothing was made yet: there is no cloud.db\n"
    make = (
        "import anyio; from pretended_cloud import this_cloud;"
        "anyio.run(this_cloud().start_disk, 'default/shop', 5, 'token')"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", make], cwd=session.directory, check=True, timeout=30)
    lines = said().stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].split() == ["disk-5gb-1", "default/shop", "being", "made"]
    assert lines[1].endswith("make disk-5gb-1 for default/shop")
