"""A pretended AWS for `cloud_image.py`: a server that outlives the process which started it.

It is moto, in a process of its own, so that what was made in it is still there when the example
has been killed. It ends when its file is deleted, and after five minutes anyway. `cloud_image.py`
beside this file is the example to read; run this one to see whether a server is running.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

LIFETIME = 300  # seconds
PENDING = timedelta(seconds=1.8)  # how long an image is in the making

try:
    import boto3
    from moto.server import ThreadedMotoServer
except ImportError as missing:
    sys.exit(f"This example needs a pretended AWS ({missing}): pip install boto3 'moto[server]'")


def client(url: str, region: str) -> Any:
    """A boto3 client of EC2, as one would make it of the real one."""
    made = boto3.client(
        "ec2",
        region_name=region,
        endpoint_url=url,
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",  # noqa: S106 - nobody's
    )
    made.meta.events.register("after-call.ec2.DescribeImages", make_pending)
    return made


def make_pending(parsed: dict[str, Any], **_: object) -> None:
    """Moto's images are there at once; those of the real AWS take minutes, so let these take some.

    How old an image is, the server says: so this goes on where it was when the example was killed.
    """
    for image in parsed.get("Images", []):
        if datetime.now(UTC) - datetime.fromisoformat(image["CreationDate"]) < PENDING:
            image["State"] = "pending"


def find(file: Path) -> str | None:
    """The server that this file tells of, if it is still there."""
    try:
        url = file.read_text()
        with urllib.request.urlopen(f"{url}/moto-api/", timeout=5):  # noqa: S310 - our own
            return url
    except (OSError, ValueError):
        return None


def start(file: Path) -> str:
    """Start a server and have it write its address into this file."""
    command = [sys.executable, __file__, "--serve", str(file), str(os.getpid())]
    server = subprocess.Popen(  # noqa: S603 - our own
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the example alone
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    if not url:
        sys.exit("The pretended AWS did not start.")
    return url


def stop(file: Path) -> None:
    """Let the server of this file end."""
    file.unlink(missing_ok=True)


def serve(file: Path, parent: int) -> None:
    """Be the server, until the file is gone or tells of another one."""
    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"  # which takes seconds
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    if os.getppid() != parent:
        return  # it was killed meanwhile, and the next one starts a server of its own
    new = file.with_suffix(".new")
    new.write_text(url)
    new.replace(file)
    print(url, flush=True)
    end = time.monotonic() + LIFETIME
    while time.monotonic() < end and file.exists() and file.read_text() == url:
        time.sleep(0.2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        for found in map(Path, sys.argv[1:] or ["cloud_image.aws"]):
            print(f"According to {found}, a server is running at {find(found) or 'no address'}.")
