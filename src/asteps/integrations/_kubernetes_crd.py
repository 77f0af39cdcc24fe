"""What a cluster is told once: the resource with room for a run in its status, and who may do what.

Pure: names in, YAML out, for ``kubectl apply -f -``. `asteps crd` prints it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from ..errors import UsageError

__all__ = ["Body", "Resource", "crd_yaml", "kind_of", "parse_resource", "rbac_yaml"]

Body: TypeAlias = Literal["status", "gzip", "configmap", "secret"]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9]*", re.ASCII)
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_VERSION = re.compile(r"v[1-9][0-9]*((alpha|beta)[1-9][0-9]*)?", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9./-]*", re.ASCII)
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})  # YAML's own
_LONGEST_LABEL = 63
_HOW = "; a resource is named by group/version/plural, such as example.com/v1/databases"


class Resource(msgspec.Struct, frozen=True):
    """A kind of objects.

    Attributes:
        group: Its group: ``example.com``.
        version: Its version: ``v1``.
        plural: Its name in URLs: ``databases``.
    """

    group: str
    version: str
    plural: str

    def __str__(self) -> str:
        return f"{self.group}/{self.version}/{self.plural}"


def parse_resource(text: str, /) -> Resource:
    """The resource that ``group/version/plural`` names.

    Raises:
        UsageError: It names none that a custom resource may be.
    """
    parts = text.split("/")
    if len(parts) != 3:
        raise UsageError(f"{text!r} names no resource{_HOW}")
    group, version, plural = parts
    labels = group.split(".")
    if len(labels) < 2 or not all(map(_is_label, labels)):
        raise UsageError(f"{group!r} is no group of yours: it is a domain with a dot in it{_HOW}")
    if not _VERSION.fullmatch(version):
        raise UsageError(f"{version!r} is no version: say v1, v1beta1, v1alpha1{_HOW}")
    if not _is_label(plural):
        raise UsageError(f"{plural!r} is no plural: lower-case letters, digits and hyphens{_HOW}")
    return Resource(group, version, plural)


def _is_label(text: str) -> bool:
    return len(text) <= _LONGEST_LABEL and _LABEL.fullmatch(text) is not None


def kind_of(plural: str, /) -> str:
    """The kind that a plural most likely has: ``databases`` are of the kind ``Database``."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("s", "")):
        if plural.endswith(ending) and len(plural) > len(ending) and not plural.endswith("ss"):
            plural = plural[: -len(ending)] + instead
            break
    return "".join(part.capitalize() for part in plural.split("-"))


# --- the definition -------------------------------------------------------------------------------


def crd_yaml(
    resource: Resource | str,
    /,
    *,
    kind: str | None = None,
    namespaced: bool = True,
    field: str = "asteps",
) -> str:
    """A CustomResourceDefinition whose status has room for runs, and for what people see of them.

    The ``spec`` is left open: write its schema where the comment says so.

    Args:
        resource: The resource, or ``group/version/plural``.
        kind: Its kind; by default made of the plural.
        namespaced: Whether its objects lie in namespaces.
        field: The field of the status that holds the runs.

    Raises:
        UsageError: A name is none.
    """
    what = parse_resource(resource) if isinstance(resource, str) else resource
    kind = kind_of(what.plural) if kind is None else kind
    if not _KIND.fullmatch(kind) or len(kind) > _LONGEST_LABEL:
        raise UsageError(f"{kind!r} is no kind: it has letters and digits, such as Database")
    if not _FIELD.fullmatch(field):
        raise UsageError(f"{field!r} is no field of a status: it has letters and digits")
    return f"""\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {_text(f"{what.plural}.{what.group}")}
spec:
  group: {_text(what.group)}
  scope: {"Namespaced" if namespaced else "Cluster"}
  names:
    plural: {_text(what.plural)}
    singular: {_text(kind.lower())}
    kind: {_text(kind)}
    listKind: {_text(f"{kind}List")}
  versions:
  - name: {what.version}
    served: true
    storage: true
    subresources:
      status: {{}}
    additionalPrinterColumns:
    - name: Phase
      type: string
      jsonPath: .status.phase
    - name: Step
      type: string
      jsonPath: .status.step
    - name: Progress
      type: string
      jsonPath: .status.progress
    - name: Ready
      type: string
      jsonPath: .status.conditions[?(@.type=="Ready")].status
    - name: Message
      type: string
      priority: 1
      jsonPath: .status.message
    - name: Age
      type: date
      jsonPath: .metadata.creationTimestamp
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            # What your objects ask for: describe it here, instead of the line that takes anything.
            type: object
            x-kubernetes-preserve-unknown-fields: true
          status:
            type: object
            # Others write here, too; without this line what they write has to be declared.
            x-kubernetes-preserve-unknown-fields: true
            properties:
              phase:
                type: string
              step:
                type: string
              progress:
                type: string
              message:
                type: string
              observedGeneration:
                type: integer
                format: int64
              conditions:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [type]
                items:
                  type: object
                  required: [type, status]
                  properties:
                    type:
                      type: string
                    status:
                      type: string
                    reason:
                      type: string
                    message:
                      type: string
                    observedGeneration:
                      type: integer
                      format: int64
                    lastTransitionTime:
                      type: string
                      format: date-time
              {_text(field)}:
                # The runs of asteps. Atomic: nobody else has a part of it, and nobody keeps account
                # of who wrote which record.
                type: object
                x-kubernetes-map-type: atomic
                x-kubernetes-preserve-unknown-fields: true
"""


def _text(name: str) -> str:
    """A name that YAML takes for a text, also one like ``1`` or ``no``."""
    plain = _PLAIN.fullmatch(name) and name.lower() not in _WORDS
    return name if plain else json.dumps(name)


# --- who may do what ------------------------------------------------------------------------------


def rbac_yaml(
    resource: Resource | str,
    /,
    *,
    name: str | None = None,
    namespace: str = "default",
    body: Body = "status",
    kopf: bool = False,
) -> str:
    """A service account, and the cluster role that its operator needs.

    Args:
        resource: The resource, or ``group/version/plural``.
        name: Of the account, the role and the binding; ``<plural>-operator`` by default.
        namespace: Where the account is.
        body: Where the records are, as `StatusStore` has it.
        kopf: Whether it also gets what kopf asks for.

    Raises:
        UsageError: A name is none.
    """
    what = parse_resource(resource) if isinstance(resource, str) else resource
    name = f"{what.plural}-operator" if name is None else name
    for each in (name, namespace):
        if not _is_label(each):
            raise UsageError(f"{each!r} is no name: lower-case letters, digits and hyphens")
    rules = [
        _rule(
            "The objects; patch is for finalizers.",
            what.group,
            what.plural,
            ["get", "list", "watch", "patch"],
        ),
        _rule("Their status, with the runs in it.", what.group, f"{what.plural}/status", ["patch"]),
        _rule("What kubectl describe shows.", "", "events", ["create"]),
    ]
    if body in ("configmap", "secret"):
        rules.append(_rule("The records of the runs.", "", f"{body}s", ["get", "create", "patch"]))
    if kopf:
        rules.append(
            _rule(
                "kopf looks for what there is to watch.",
                "apiextensions.k8s.io",
                "customresourcedefinitions",
                ["list", "watch"],
            )
        )
        rules.append(_rule("Likewise.", "", "namespaces", ["list", "watch"]))
    return f"""\
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {_text(name)}
  namespace: {_text(namespace)}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {_text(name)}
rules:
{"".join(rules)}\
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {_text(name)}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {_text(name)}
subjects:
- kind: ServiceAccount
  name: {_text(name)}
  namespace: {_text(namespace)}
"""


def _rule(why: str, group: str, plural: str, verbs: Sequence[str]) -> str:
    return f"""\
# {why}
- apiGroups: [{_text(group)}]
  resources: [{_text(plural)}]
  verbs: [{", ".join(verbs)}]
"""
