"""The operator, with kopf.

kopf run -n default with_kopf.py
"""

from __future__ import annotations

import logging
from typing import Any

import kopf
from databases import bring_down, bring_up

from asteps.integrations.kopf import configure, operate


@kopf.on.startup()
async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
    configure(settings, prefix="example.com")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # one line for each request


# A pass ends when a step would have to wait for longer than max_wait seconds. So long do edits and
# deletions of an object wait at most: kopf gives them to us one after another.
operate("example.com", "v1", "databases", cleanup=bring_down, max_wait=1)(bring_up)
