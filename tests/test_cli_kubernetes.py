"""The command line reaches a run by the object that it is about."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import anyio
import pytest
from cli_tools import Said
from kubernetes_server import Kube

import asteps
from asteps import Step
from asteps.cli._app import run
from asteps.errors import UsageError
from asteps.integrations._kubernetes_url import from_url, run_of
from asteps.stores.kubernetes import LightkubeTransport, StatusStore

SHOP = "kubernetes:example.com/v1/databases/default/shop"
ZONE = "kubernetes:example.com/v1/zones/west"

Command = Callable[..., Said]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs commands in this process; they are told of no store."""
    monkeypatch.delenv("ASTEPS_STORE", raising=False)

    def command(*words: str) -> Said:
        capsys.readouterr()
        code = run(words)
        return Said(code, *capsys.readouterr())

    return command


# --- what a URL says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "store", "id"),
    [
        (SHOP, SHOP, "default/shop"),
        (f"{SHOP}/cleanup", SHOP, "default/shop/cleanup"),
        (f"{SHOP}?body=gzip", f"{SHOP}?body=gzip", "default/shop"),
        (f"{SHOP}/cleanup?body=gzip", f"{SHOP}?body=gzip", "default/shop/cleanup"),
        (ZONE, ZONE, "west"),
        (f"{ZONE}/cleanup", f"{ZONE}/cleanup", "west/cleanup"),  # an object in the namespace west
        ("KUBERNETES:/v1/pods/default/web", "kubernetes:/v1/pods/default/web", "default/web"),
    ],
)
def test_a_url_names_a_store_and_a_run(url: str, store: str, id: str) -> None:
    """The object is the store; the run is its main one, or after its name its clean-up."""
    assert run_of(url) == (store, id)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kubernetes:", "an object is named group/version/plural/namespace/name"),
        ("kubernetes:shop", "an object is named"),
        (f"{SHOP}/other", "an object is named"),
        (f"{SHOP}/cleanup/cleanup", "an object is named"),
        ("kubernetes://example.com/v1/databases/default/shop", "no //"),
        (f"{SHOP}#main", "no #"),
        (f"{SHOP}?cluster=prod", "no option 'cluster'"),
        (f"{SHOP}?body", "not of the form"),
    ],
)
def test_slips_in_a_url(cli: Command, url: str, says: str) -> None:
    """What names no object is said to, before any server is asked."""
    with pytest.raises(UsageError, match=says):
        run_of(url)
    said = cli("show", url)
    assert (said.code, said.out) == (2, "")
    assert says in said.err
    assert cli("runs", "-s", url).code == 3


def test_a_body_that_there_is_not() -> None:
    """An option's value is checked, too."""
    with pytest.raises(UsageError, match="not 'annotation'"):
        from_url(f"{SHOP}?body=annotation")


async def test_a_store_by_its_url() -> None:
    """The entry point's store is that of the object; nothing is reached by making it."""
    store = from_url(f"{SHOP}?field=runs&body=gzip&context=prod", create=False)
    assert isinstance(store, StatusStore)
    assert str(store.ref) == "example.com/v1/databases/default/shop"
    await store.aclose()
    async with asteps.open_store(SHOP) as found:
        assert isinstance(found, StatusStore)


def test_a_store_that_is_named_wins(cli: Command, tmp_path: Path) -> None:
    """With --store, before the verb or after it, an ID is an ID, whatever it looks like."""
    for words in (
        ("show", SHOP, "-s", f"file:{tmp_path}"),
        ("-s", f"file:{tmp_path}", "show", SHOP),
    ):
        said = cli(*words)
        assert (said.code, said.err) == (3, f"asteps: there is no run {SHOP!r} in this store\n")


def test_a_server_that_is_not_there(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster the error is one line, and the exit code that of a store."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("ASTEPS_STORE", "somewhere.db")  # the ID says more
    said = cli("show", SHOP)
    assert (said.code, said.out) == (5, "")
    assert said.err.startswith("asteps: ")
    assert said.err.count("\n") == 1


# --- on a real server -----------------------------------------------------------------------------


async def bring_up(s: Step) -> str:
    """Fails at its second step."""

    def fail() -> None:
        raise OSError("no space")

    await s.call("network", str, "net-1")
    await s.call("disk", fail)
    return "up"


async def bring_down(s: Step) -> None:
    """Waits."""

    async def gone(c: Step) -> None:
        c.pending(after=300, why="the server stops")

    await s.do("gone", gone)


async def _both(ref: str, body: Literal["status", "configmap"] = "status") -> None:
    async with (
        LightkubeTransport() as transport,
        StatusStore(ref, transport=transport, body=body) as store,
    ):
        name = "/".join(ref.split("/")[3:])
        await asteps.reconcile(bring_up, store=store, id=name)
        await asteps.reconcile(bring_down, store=store, id=f"{name}/cleanup")


@pytest.fixture
def shop(kube: Kube) -> tuple[Kube, str, str]:
    """An object with a failed run and a clean-up that waits: server, URL and the run's id."""
    ref = kube.create(kube.install(), "shop", {"size": 5})
    anyio.run(_both, ref)
    return kube, f"kubernetes:{ref}", f"{kube.namespace}/shop"


@pytest.mark.kubernetes
def test_looking(cli: Command, shop: tuple[Kube, str, str], tmp_path: Path) -> None:
    """Every verb that looks at a run finds it by its object's URL, and the clean-up likewise."""
    _, url, id = shop
    shown = cli("show", url)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[0] == f"run       {id}"
    assert "failed at disk\n  OSError: no space" in shown.out
    assert cli("show", url, "network").out.endswith('result\n"net-1"\n')
    assert "pending, due at" in cli("show", f"{url}/cleanup").out
    report = cli("report", url)
    assert report.code == 0
    assert f"asteps recover -s {url} {id}" in report.out
    assert cli("watch", url).code == 1
    assert cli("watch", f"{url}/cleanup", "--timeout", "10ms").code == 7
    assert cli("export", url, "-o", str(tmp_path / "shop.json")).code == 0
    state = asteps.State.decode((tmp_path / "shop.json").read_bytes())
    assert [path for path, node in state.walk() if node.failed] == ["", "disk"]


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("/shop", "/shopp"), '"shopp" not found'),
        (("databases", "databasess"), "404 page not found"),
        (("/v1/", "/v7/"), "404 page not found"),
    ],
)
def test_an_object_that_there_is_not(
    cli: Command, shop: tuple[Kube, str, str], change: tuple[str, str], says: str
) -> None:
    """A slip in the name of an object is not taken for an object without runs."""
    url = shop[1].replace(*change)
    for words in (("show", url), ("runs", "-s", url), ("recover", url, "--yes")):
        said = cli(*words)
        assert (said.code, said.out) == (3, "")
        assert said.err.startswith(f"asteps: there is no {url.partition(':')[2]}: 404 to get ")
        assert says in said.err


@pytest.mark.kubernetes
def test_contexts(
    cli: Command, shop: tuple[Kube, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context is that of the kubeconfig; without one it is the current one."""
    _, url, id = shop
    mine = Path(os.environ["KUBECONFIG"]).read_text()
    other = tmp_path / "config"
    other.write_text(re.sub(r"(?m)^current-context: .*$", "current-context: none", mine))
    monkeypatch.setenv("KUBECONFIG", str(other))
    found = re.search(r"(?m)^current-context: (.*)$", mine)
    assert found is not None
    said = cli("show", url)
    assert (said.code, said.out) == (5, "")
    assert "Context 'none' not found; is it the right cluster and user?" in said.err
    assert cli("show", f"{url}?context={found[1]}").out.splitlines()[0] == f"run       {id}"
    assert "Context 'nowhere' not found" in cli("show", f"{url}?context=nowhere").err


@pytest.mark.kubernetes
def test_the_object_as_a_store(cli: Command, shop: tuple[Kube, str, str]) -> None:
    """The object is a store as any other: its runs can be listed, and it has a doctor."""
    _, url, id = shop
    listed = json.loads(cli("runs", "-s", url, "--json").out)
    assert {run["id"]: run["status"] for run in listed["runs"]} == {
        id: "failed",
        f"{id}/cleanup": "pending",
    }
    checked = cli("doctor", "-s", url)
    assert (checked.code, checked.err) == (0, "")
    assert "nothing wrong was found" in checked.out
    assert cli("show", "-s", url, id).code == 0
    assert cli("show", "-s", url, f"{id}/c").code == 0  # as much of it as no other has
    assert cli("stats", "-s", url).code == 0


@pytest.mark.kubernetes
def test_putting_right(
    cli: Command, shop: tuple[Kube, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every verb that changes a run does it there; what kubectl shows of the object follows."""
    kube, url, _ = shop
    ref = url.partition(":")[2]
    assert kube.get(ref)["status"]["asteps"]["runs"].keys() == {
        f"{kube.namespace}/shop",
        f"{kube.namespace}/shop/cleanup",
    }
    monkeypatch.setenv("ASTEPS_STORE", "somewhere.db")  # the ID says more
    tried = cli("recover", url, "--dry-run")
    assert (tried.code, tried.err) == (0, "")
    assert "recover 'disk'" in tried.out
    assert cli("recover", url, "--yes", "--why", "there is space").code == 0
    status = kube.get(ref)["status"]
    assert (status["phase"], status["progress"]) == ("Pending", "1/2")
    assert cli("rename", url, "network", "net", "--yes").code == 0
    assert cli("reset", url, "net", "--yes").code == 0
    assert cli("set-result", url, "disk", '"disk-1"', "--yes").code == 0
    assert kube.get(ref)["status"]["progress"] == "1/2"
    shown = cli("show", url).out
    assert "recovered 'disk': there is space" in shown
    assert "set the result of 'disk'" in shown


@pytest.mark.kubernetes
def test_records_that_are_elsewhere(cli: Command, kube: Kube) -> None:
    """Records in a ConfigMap are found there without a word, and are changed there."""
    ref = kube.create(kube.install(), "shop")
    anyio.run(_both, ref, "configmap")
    url = f"kubernetes:{ref}"
    assert "failed at disk" in cli("show", url).out
    assert cli("recover", url, "--yes").code == 0
    held = kube.get(ref)["status"]["asteps"]
    assert held["body"] == "configmap"
    assert "records" not in held["runs"][f"{kube.namespace}/shop"]
    assert "reopened" in cli("show", f"{url}?body=configmap").out


@pytest.mark.kubernetes
def test_removing_and_bringing_back(
    cli: Command, shop: tuple[Kube, str, str], tmp_path: Path
) -> None:
    """Runs of several objects are deleted at once; a document becomes the run of an object."""
    kube, url, id = shop
    ref = url.partition(":")[2]
    other = kube.create(ref.rsplit("/", 2)[0], "blog")
    kept = str(tmp_path / "shop.json")
    assert cli("export", url, "-o", kept).code == 0
    assert cli("import", f"kubernetes:{other}", kept).code == 0
    assert cli("import", f"kubernetes:{other}", kept, "--replace", "--yes").code == 0
    assert kube.get(other)["status"]["phase"] == "Failed"
    said = cli("rm", f"{url}/cleanup", url, f"kubernetes:{other}", "--yes")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-3:] == [
        f"deleted {id}/cleanup",
        f"deleted {id}",
        f"deleted {kube.namespace}/blog",
    ]
    assert cli("show", url).code == 3


@pytest.mark.kubernetes
def test_completion(
    shop: tuple[Kube, str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the URL of an object the shell is offered the steps of its run."""
    monkeypatch.delenv("ASTEPS_STORE", raising=False)
    monkeypatch.setenv("_ASTEPS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"asteps show {shop[1]} ")
    monkeypatch.setenv("COMP_CWORD", "3")
    with pytest.raises(SystemExit):
        run([])
    assert capsys.readouterr().out.split() == ["network", "disk"]


def test_nothing_of_kubernetes_is_imported_for_other_stores() -> None:
    """The command line starts as quickly as before where no object is named."""
    code = (
        "import sys; from asteps.cli._app import run; run(['runs', '-s', 'none.db']);"
        "print([m for m in sys.modules if 'kubernetes' in m or 'lightkube' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
