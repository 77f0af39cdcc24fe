"""A Kubernetes API server for tests: whatever ``KUBECONFIG`` names, used as its administrator.

Each test gets a namespace of its own, so that tests share a server without meeting, and a group of
its own where it needs more than the definition that all share: a server takes long to learn a new
one, and remembers it.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2
import pytest
from lightkube import ApiError, Client, KubeConfig
from lightkube.generic_resource import (
    GenericNamespacedResource,
    create_global_resource,
    create_namespaced_resource,
)
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace
from lightkube.types import PatchType

__all__ = ["MISSING", "NO_START", "Kube", "a_kube"]

_Definition = create_global_resource(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"
)

MISSING = "KUBECONFIG names no Kubernetes API server"
NO_START = "ASTEPS_KUBE_START names no program that starts a Kubernetes API server"
DEADLINE = 60.0  # seconds for what a server does by itself, on a busy machine


class Kube:
    """One test's part of a server: a namespace, and a group of custom resources.

    Its methods block: in an async test call them in a thread.

    Args:
        kubeconfig: The file's path.
        common: What `install` gives where nothing special is wished for: another part's, which
            outlives this one.

    Attributes:
        group: The group of the custom resources that `install` makes.
        namespace: Where the test's objects are.
        kubeconfig: The file's path, for processes that are started.
    """

    def __init__(self, kubeconfig: str, common: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        self._common = common
        self.client = Client(config=KubeConfig.from_file(kubeconfig), field_manager="test")
        unique = uuid.uuid4().hex[:10]
        self.group = f"t{unique}.example.com"
        self.namespace = f"test-{unique}"
        self.client.create(Namespace(metadata=ObjectMeta(name=self.namespace)))
        self._installed: dict[str, type[GenericNamespacedResource]] = {}  # group/version/plural
        self._created: list[str] = []

    def close(self) -> None:
        """Take away what the test has made."""
        for ref in self._created:
            with contextlib.suppress(ApiError, httpx2.HTTPError):
                self.patch(ref, {"metadata": {"finalizers": None}})
                self.delete(ref)
        with contextlib.suppress(ApiError, httpx2.HTTPError):
            self.client.delete(Namespace, self.namespace)
        for text in self._installed:
            group, _, plural = text.split("/")
            if text != self._common:
                with contextlib.suppress(ApiError, httpx2.HTTPError):
                    self.client.delete(_Definition, f"{plural}.{group}")
        self.client.close()

    def install(
        self,
        *,
        plural: str = "databases",
        kind: str = "Database",
        version: str = "v1",
        status: Mapping[str, Any] | None = None,
        subresource: bool = True,
    ) -> str:
        """Define a custom resource; returns ``group/version/plural``.

        Args:
            plural: Its plural.
            kind: Its kind.
            version: Its version.
            status: Schema of the status; one that takes anything where nothing is said.
            subresource: Whether it has a status subresource.
        """
        wished = (plural, kind, version, status, subresource)
        if self._common is not None and wished == ("databases", "Database", "v1", None, True):
            self._installed[self._common] = _resource(self._common, kind)
            return self._common
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema = {
            "type": "object",
            "properties": {"spec": anything, "status": dict(status or anything)},
        }
        served: dict[str, Any] = {
            "name": version,
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": schema},
        }
        if subresource:
            served["subresources"] = {"status": {}}
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{self.group}"},
            "spec": {
                "group": self.group,
                "scope": "Namespaced",
                "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
                "versions": [served],
            },
        }
        return self.apply(definition)

    def apply(self, definition: Mapping[str, Any]) -> str:
        """Create a CustomResourceDefinition, wait until it is served; ``group/version/plural``."""
        spec = definition["spec"]
        group, names = spec["group"], spec["names"]
        version = spec["versions"][0]["name"]
        self.client.create(_Definition.from_dict(dict(definition)))
        text = f"{group}/{version}/{names['plural']}"
        self._installed[text] = kind = _resource(text, names["kind"])

        def is_served() -> bool:
            with contextlib.suppress(ApiError, httpx2.HTTPStatusError):  # a 404 without a body
                list(self.client.list(kind, namespace=self.namespace))
                return True
            return False

        self.until(is_served)
        return text

    def create(self, resource: str, name: str, spec: Mapping[str, Any] | None = None) -> str:
        """Make an object; returns what `ObjectRef.parse` takes."""
        kind = self._installed[resource]
        self.client.create(
            kind(
                metadata=ObjectMeta(name=name, namespace=self.namespace),
                spec=dict(spec or {}),
            )
        )
        ref = f"{resource}/{self.namespace}/{name}"
        self._created.append(ref)
        return ref

    def get(self, ref: str) -> dict[str, Any]:
        """An object as it is now."""
        resource, namespace, name = ref.rsplit("/", 2)
        found = self.client.get(self._installed[resource], name, namespace=namespace)
        as_dict: dict[str, Any] = found.to_dict()  # type: ignore[no-untyped-call]
        return as_dict

    def patch(self, ref: str, patch: Mapping[str, Any], *, status: bool = False) -> None:
        """Merge-patch an object, or its status, as another writer would."""
        resource, namespace, name = ref.rsplit("/", 2)
        kind: Any = self._installed[resource]
        self.client.patch(
            kind.Status if status else kind,
            name,
            dict(patch),
            namespace=namespace,
            patch_type=PatchType.MERGE,
        )

    def delete(self, ref: str) -> None:
        """Ask for an object's end."""
        resource, namespace, name = ref.rsplit("/", 2)
        self.client.delete(self._installed[resource], name, namespace=namespace)

    def until(self, so: Callable[[], bool], *, within: float = DEADLINE) -> None:
        """Wait until something is so.

        Raises:
            AssertionError: It did not become so.
        """
        deadline = time.monotonic() + within
        while not so():
            assert time.monotonic() < deadline, "it did not become so in time"
            time.sleep(0.05)


def _resource(text: str, kind: str) -> type[GenericNamespacedResource]:
    group, version, plural = text.split("/")
    return create_namespaced_resource(group, version, kind, plural)


@contextlib.contextmanager
def a_kube(common: str | None = None) -> Iterator[Kube]:
    """A part of the server; the test is skipped where there is no server."""
    kubeconfig = os.environ.get("KUBECONFIG")
    if not kubeconfig:
        pytest.skip(MISSING)
    kube = Kube(kubeconfig, common)
    try:
        yield kube
    finally:
        kube.close()
