"""What `asteps crd` prints is what a cluster takes and what an operator needs: no less, no more."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_tools import CommandLine, environment
from kubectl import kubectl
from kubernetes_server import Kube
from msgspec import yaml

from asteps.errors import UsageError
from asteps.integrations._kubernetes_crd import (
    Resource,
    crd_yaml,
    kind_of,
    parse_resource,
    rbac_yaml,
)

RESOURCE = "example.com/v1/databases"


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line, in this process."""
    return CommandLine(tmp_path / "none.db", capsys)


def documents(text: str) -> dict[str, Any]:
    """The documents of a YAML text by their kinds."""
    return {each["kind"]: each for each in map(yaml.decode, text.split("---\n"))}


# --- the definition -------------------------------------------------------------------------------


def test_the_definition_is_whole() -> None:
    """It has the names, a status subresource, the columns, and room for what asteps writes."""
    found = yaml.decode(crd_yaml(RESOURCE))
    assert found["metadata"] == {"name": "databases.example.com"}
    assert {name: found["spec"][name] for name in ("group", "scope", "names")} == {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {
            "plural": "databases",
            "singular": "database",
            "kind": "Database",
            "listKind": "DatabaseList",
        },
    }
    (version,) = found["spec"]["versions"]
    assert (version["name"], version["served"], version["storage"]) == ("v1", True, True)
    assert version["subresources"] == {"status": {}}
    columns = [(c["name"], c.get("priority", 0)) for c in version["additionalPrinterColumns"]]
    assert columns == [
        ("Phase", 0),
        ("Step", 0),
        ("Progress", 0),
        ("Ready", 0),
        ("Message", 1),
        ("Age", 0),
    ]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert {name: each["type"] for name, each in status["properties"].items()} == {
        "phase": "string",
        "step": "string",
        "progress": "string",
        "message": "string",
        "observedGeneration": "integer",
        "conditions": "array",
        "asteps": "object",
    }
    assert status["properties"]["asteps"] == {
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-preserve-unknown-fields": True,
    }


def test_options_of_the_definition() -> None:
    """Kind, scope and the field of the status are what is asked for."""
    found = yaml.decode(crd_yaml(RESOURCE, kind="DB", namespaced=False, field="runs"))
    assert found["spec"]["scope"] == "Cluster"
    assert found["spec"]["names"]["kind"] == "DB"
    assert found["spec"]["names"]["singular"] == "db"
    (version,) = found["spec"]["versions"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert "runs" in status["properties"]
    assert "asteps" not in status["properties"]


@pytest.mark.parametrize(
    ("plural", "kind"),
    [
        ("databases", "Database"),
        ("policies", "Policy"),
        ("boxes", "Box"),
        ("classes", "Class"),
        ("vpc-moves", "VpcMove"),
        ("data", "Data"),
        ("s", "S"),
    ],
)
def test_kinds(plural: str, kind: str) -> None:
    """A kind is guessed as English has it; whoever knows better says so."""
    assert kind_of(plural) == kind


@pytest.mark.parametrize("word", ["no", "true", "on", "null", "1", "12e3"])
def test_names_that_yaml_would_read_otherwise(word: str) -> None:
    """A name stays a text, also one that YAML would take for a number or a truth."""
    found = yaml.decode(crd_yaml(Resource(f"{word}.example.com", "v1", word), kind="On"))
    assert found["spec"]["names"]["plural"] == word
    assert found["spec"]["names"]["kind"] == "On"
    assert documents(rbac_yaml(RESOURCE, namespace=word))["ServiceAccount"]["metadata"] == {
        "name": "databases-operator",
        "namespace": word,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("databases", "names no resource"),
        ("example.com/v1/databases/default/shop", "names no resource"),
        ("v1/v1/pods", "no group of yours"),
        ("/v1/pods", "no group of yours"),
        ("Example.com/v1/databases", "no group of yours"),
        ("example.com/1/databases", "no version"),
        ("example.com/v1/Databases", "no plural"),
        ("example.com/v1/data\nbases", "no plural"),
        ("example.com/v1/" + "d" * 64, "no plural"),
    ],
)
def test_what_is_no_resource(text: str, says: str) -> None:
    """What a cluster would refuse is refused before, with what a name looks like."""
    with pytest.raises(UsageError, match=says):
        parse_resource(text)


@pytest.mark.parametrize("how", [{"kind": "my kind"}, {"kind": ""}, {"field": "a.b"}])
def test_what_is_no_name(how: Mapping[str, str]) -> None:
    """Nothing that is no name gets into the text."""
    with pytest.raises(UsageError):
        crd_yaml(RESOURCE, **how)  # type: ignore[arg-type]


# --- who may do what ------------------------------------------------------------------------------


def rules(text: str) -> dict[str, list[str]]:
    """The verbs by resource."""
    role = documents(text)["ClusterRole"]
    return {
        f"{rule['apiGroups'][0]}/{rule['resources'][0]}": rule["verbs"] for rule in role["rules"]
    }


def test_rules() -> None:
    """An operator may do what it does and no more; the binding is for its account."""
    text = rbac_yaml(RESOURCE, name="op", namespace="ops")
    assert rules(text) == {
        "example.com/databases": ["get", "list", "watch", "patch"],
        "example.com/databases/status": ["patch"],
        "/events": ["create"],
    }
    binding = documents(text)["ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == "op"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "op", "namespace": "ops"}]


def test_rules_for_more() -> None:
    """Records elsewhere, and kopf, need more; each gets what it needs."""
    plain = rules(rbac_yaml(RESOURCE))
    for body, more in (
        ("gzip", {}),
        ("configmap", {"/configmaps": ["get", "create", "patch"]}),
        ("secret", {"/secrets": ["get", "create", "patch"]}),
    ):
        assert rules(rbac_yaml(RESOURCE, body=body)) == {**plain, **more}  # type: ignore[arg-type]
    kopf = rules(rbac_yaml(RESOURCE, kopf=True))
    assert set(kopf) - set(plain) == {
        "apiextensions.k8s.io/customresourcedefinitions",
        "/namespaces",
    }


def test_a_namespace_that_is_none() -> None:
    """Nothing that is no name gets into the rules either."""
    with pytest.raises(UsageError):
        rbac_yaml(RESOURCE, namespace="a: b")


# --- the command ----------------------------------------------------------------------------------


def test_the_command(cli: CommandLine) -> None:
    """It prints the definition and the rules, or one of them; it needs no store and no client."""
    both = crd_yaml(RESOURCE) + "---\n" + rbac_yaml(RESOURCE)
    assert cli.ok("crd", RESOURCE) == both
    assert cli.ok("crd", RESOURCE, "--no-rbac") == crd_yaml(RESOURCE)
    assert cli.ok(
        *("crd", RESOURCE, "--no-definition", "--kopf", "--body", "secret"),
        *("--name", "op", "-n", "ops"),
    ) == rbac_yaml(RESOURCE, name="op", namespace="ops", body="secret", kopf=True)
    assert cli.ok("crd", RESOURCE, "--no-definition", "--no-rbac") == ""
    assert cli.ok(
        "crd", RESOURCE, "--kind", "Db", "--cluster", "--field", "runs", "--no-rbac"
    ) == crd_yaml(RESOURCE, kind="Db", namespaced=False, field="runs")


@pytest.mark.parametrize(
    "words",
    [
        ("crd", "databases"),
        ("crd", RESOURCE, "--kind", "a b"),
        ("crd", RESOURCE, "--namespace", "A"),
        ("crd", RESOURCE, "--body", "annotation"),
        ("crd",),
    ],
)
def test_slips_of_the_command(cli: CommandLine, words: tuple[str, ...]) -> None:
    """A slip is one line, exit code 2, and prints nothing that somebody could apply."""
    said = cli(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("asteps: ")


def test_no_client_is_imported() -> None:
    """What has to be told to a cluster can be printed where no client of one is installed."""
    code = (
        "import sys; sys.modules['lightkube'] = sys.modules['yaml'] = None;"
        "from asteps.cli._app import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "crd", RESOURCE]
    done = subprocess.run(command, capture_output=True, check=True, env=environment())
    assert done.stdout.startswith(b"apiVersion: apiextensions.k8s.io/v1\n")


# --- on a real server -----------------------------------------------------------------------------


@contextlib.contextmanager
def applied(kube: Kube, text: str) -> Iterator[None]:
    """Applied to the server, and taken away again."""
    try:
        kubectl(kube, "apply", "-f", "-", given=text)
        yield
    finally:
        kubectl(kube, "delete", "--ignore-not-found", "--wait=false", "-f", "-", given=text)


def allowed(kube: Kube, name: str, verb: str, what: str, *options: str) -> bool:
    """Whether the operator's account may do something, as the server sees it."""
    account = f"system:serviceaccount:{kube.namespace}:{name}"
    words = ("auth", "can-i", verb, what, "--as", account, "-n", kube.namespace, *options)
    return kubectl(kube, *words, may_fail=True).strip() == "yes"


@pytest.mark.kubernetes
def test_a_server_takes_it_and_keeps_what_asteps_writes(kube: Kube) -> None:
    """A server accepts it without a warning, drops no field of ours, and shows the columns."""
    resource = f"{kube.group}/v1/databases"
    definition = yaml.decode(crd_yaml(resource))
    kube.apply(definition)
    ref = kube.create(resource, "shop", {"size": 5})
    status = {
        "phase": "Waiting",
        "step": "server/boot",
        "progress": "2/3",
        "message": "the server boots",
        "observedGeneration": 1,
        "conditions": [
            {
                "type": type,
                "status": "False",
                "reason": "Waiting",
                "message": "the server boots",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for type in ("Ready", "Reconciling", "Stalled")
        ],
        "asteps": {"format": 1, "seq": 1, "runs": {"a/b": {"records": {"": "{}", "x/y": "1.0"}}}},
        "somebody": {"else": [1, {"writes": "here"}]},
    }
    kube.patch(ref, {"status": status}, status=True)
    assert kube.get(ref)["status"] == status
    shown = kubectl(kube, "get", f"databases.{kube.group}", "-n", kube.namespace, "-o", "wide")
    head, row = shown.splitlines()
    assert head.split() == ["NAME", "PHASE", "STEP", "PROGRESS", "READY", "MESSAGE", "AGE"]
    assert row.split()[:-1] == [
        *("shop", "Waiting", "server/boot", "2/3", "False"),
        *("the", "server", "boots"),
    ]


@pytest.mark.kubernetes
def test_a_server_takes_what_is_of_no_namespace(kube: Kube) -> None:
    """The definition for objects of the whole cluster is accepted, too."""
    text = crd_yaml(f"{kube.group}/v1alpha1/zones", namespaced=False, field="runs")
    assert "created" in kubectl(kube, "apply", "--dry-run=server", "-f", "-", given=text)


@pytest.mark.kubernetes
@pytest.mark.parametrize("kopf", [False, True])
def test_the_account_may_do_what_an_operator_does(kube: Kube, kopf: bool) -> None:
    """By the rules the account can work, and can do nothing beyond."""
    resource = f"{kube.group}/v1/databases"
    kube.apply(yaml.decode(crd_yaml(resource)))
    name = f"op-{kube.namespace}"
    plural = f"databases.{kube.group}"
    text = rbac_yaml(resource, name=name, namespace=kube.namespace, kopf=kopf, body="configmap")
    with applied(kube, text):
        kube.until(lambda: allowed(kube, name, "get", plural))
        for verb in ("list", "watch", "patch"):
            assert allowed(kube, name, verb, plural), verb
        assert allowed(kube, name, "patch", plural, "--subresource=status")
        assert allowed(kube, name, "create", "events")
        assert allowed(kube, name, "patch", "configmaps")
        for verb in ("create", "delete", "update"):
            assert not allowed(kube, name, verb, plural), verb
        for what in ("secrets", "pods"):
            assert not allowed(kube, name, "get", what), what
        watched = f"customresourcedefinitions.{'apiextensions.k8s.io'}"
        assert allowed(kube, name, "list", watched, "--all-namespaces") is kopf
