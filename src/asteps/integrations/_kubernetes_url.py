"""Objects of a cluster by URL: ``kubernetes:example.com/v1/databases/default/shop``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple, get_args
from urllib.parse import parse_qsl, urlsplit

from .._store import Store
from ..errors import UsageError
from ..stores.kubernetes import ObjectRef, StatusStore
from ._kubernetes_crd import Body
from ._kubernetes_view import CLEANUP, status_view

__all__ = ["from_url", "run_of"]

_HOW: Final = "; an object is named by kubernetes:group/version/plural/namespace/name"
_OPTIONS: Final = ("body", "context", "field")


class _Place(NamedTuple):
    """What such a URL says."""

    path: str
    query: str
    options: Mapping[str, str]


def from_url(url: str, /, *, create: bool = True) -> Store:  # noqa: ARG001 - no object is ever made
    """The store of the object that a URL names; an entry point of the group ``asteps.stores``.

    ``?field=runs`` and ``?body=configmap`` are the options of its `StatusStore`. A body that is in
    use already is found without a word, but for one in another store. ``?context=prod`` is a
    context of the kubeconfig.

    Args:
        url: ``kubernetes:group/version/plural/namespace/name``; of an object in no namespace
            ``kubernetes:group/version/plural/name``.
        create: No object is ever made; whether it is there is asked by `open_store`.

    Raises:
        UsageError: It names no object.
    """
    place = _parse(url)
    ref = ObjectRef.parse(place.path)
    body = place.options.get("body", "status")
    known: tuple[Body, ...] = get_args(Body)
    if body not in known:
        raise UsageError(f"body is {', '.join(known)}, not {body!r}")
    store = StatusStore(
        ref,
        body=known[known.index(body)],
        field=place.options.get("field", "asteps"),
        view=status_view(namespaced=ref.namespace is not None),
    )
    if "context" in place.options:
        from ..stores.kubernetes import LightkubeTransport  # noqa: PLC0415 - an extra

        store._own = LightkubeTransport(context=place.options["context"])
    return store


def run_of(url: str, /) -> tuple[str, str]:
    """The store's URL and the run's id, where a URL names a run.

    It is the object's main run; with ``/cleanup`` after the name its clean-up. Of an object that
    is in no namespace the clean-up cannot be named so: ``-s kubernetes:… NAME/cleanup`` does.

    Raises:
        UsageError: It names no object.
    """
    place = _parse(url)
    path, cleanup = place.path, ""
    if path.count("/") == 5 and path.endswith(f"/{CLEANUP}"):
        path, cleanup = path.removesuffix(f"/{CLEANUP}"), f"/{CLEANUP}"
    ref = ObjectRef.parse(path)
    name = ref.name if ref.namespace is None else f"{ref.namespace}/{ref.name}"
    query = f"?{place.query}" if place.query else ""
    return f"kubernetes:{path}{query}", f"{name}{cleanup}"


def _parse(url: str) -> _Place:
    parts = urlsplit(url)
    if parts.netloc or parts.fragment:
        raise UsageError(f"{url!r} names no object: a kubernetes: URL has no // and no #{_HOW}")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise UsageError(f"the options of {url!r} are not of the form ?name=value") from None
    if odd := sorted({name for name, _ in pairs} - {*_OPTIONS}):
        raise UsageError(f"kubernetes: knows no option {odd[0]!r}; it has {', '.join(_OPTIONS)}")
    return _Place(parts.path, parts.query, dict(pairs))
