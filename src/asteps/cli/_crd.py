"""``asteps crd``: what a cluster is told before an operator keeps its runs in its objects."""

from __future__ import annotations

from typing import Annotated, get_args

from ..errors import UsageError
from ._exits import Exits, Stop
from ._output import write_document
from ._phrases import parse_choice
from ._typer import Argument, Option

__all__ = ["crd"]


def crd(
    resource: Annotated[
        str, Argument(metavar="RESOURCE", help="group/version/plural: example.com/v1/databases.")
    ],
    *,
    kind: Annotated[
        str | None, Option("--kind", "-k", metavar="KIND", help="Its kind, if it is not Database.")
    ] = None,
    namespaced: Annotated[
        bool, Option("--namespaced/--cluster", help="Whether its objects lie in namespaces.")
    ] = True,
    definition: Annotated[
        bool, Option("--definition/--no-definition", help="The CustomResourceDefinition.")
    ] = True,
    rbac: Annotated[
        bool, Option("--rbac/--no-rbac", help="The operator's service account and cluster role.")
    ] = True,
    name: Annotated[
        str | None,
        Option("--name", metavar="NAME", help="Of the account and the role; PLURAL-operator."),
    ] = None,
    namespace: Annotated[
        str, Option("--namespace", "-n", metavar="NAMESPACE", help="Where the account is.")
    ] = "default",
    kopf: Annotated[bool, Option("--kopf", help="Also what kopf needs to be allowed.")] = False,
    body: Annotated[
        str, Option("--body", metavar="BODY", help="As StatusStore's: configmap or secret.")
    ] = "status",
    field: Annotated[
        str, Option("--field", metavar="FIELD", help="As StatusStore's: where the runs are.")
    ] = "asteps",
) -> None:
    """Print what `kubectl apply -f -` takes: a resource with room for runs, and who may use it."""
    from ..integrations import _kubernetes_crd as made  # noqa: PLC0415 - no other verb needs it

    known: tuple[made.Body, ...] = get_args(made.Body)
    where = known[known.index(parse_choice(body, "--body", known))]
    try:
        what = made.parse_resource(resource)
        documents: list[str] = []
        if definition:
            documents.append(made.crd_yaml(what, kind=kind, namespaced=namespaced, field=field))
        if rbac:
            documents.append(
                made.rbac_yaml(what, name=name, namespace=namespace, body=where, kopf=kopf)
            )
    except UsageError as exc:
        raise Stop(Exits.USAGE, str(exc)) from exc
    if documents:
        write_document("---\n".join(documents), escape=True)
