"""The operator without kopf: a plain loop, on asyncio here (``anyio.run(…, backend="trio")``).

    python without_kopf.py default

The argument is the namespace; without one it works on all of them.
"""

from __future__ import annotations

import logging
import sys
from functools import partial

import anyio
from databases import bring_down, bring_up

from asteps.integrations.kubernetes import operate

RESOURCE = "example.com/v1/databases"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # one line for each request
    namespace = sys.argv[1] if len(sys.argv) > 1 else None
    work = partial(operate, RESOURCE, bring_up, cleanup=bring_down, namespace=namespace, max_wait=1)
    try:
        anyio.run(work)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
