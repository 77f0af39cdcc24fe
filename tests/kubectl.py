"""What people type: kubectl, on the server of a test."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from kubernetes_server import Kube

__all__ = ["MISSING", "kubectl"]

MISSING = "no kubectl is installed"


def kubectl(kube: Kube, *words: str, given: str | None = None, may_fail: bool = False) -> str:
    """What kubectl prints; the test is skipped where there is none.

    Args:
        kube: The test's part of the server.
        words: The command.
        given: Its standard input.
        may_fail: Whether an exit code other than 0 is an answer.
    """
    if shutil.which("kubectl") is None:
        pytest.skip(MISSING)
    done = subprocess.run(
        ["kubectl", *words],
        input=given,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env={**os.environ, "KUBECONFIG": kube.kubeconfig},
    )
    assert done.returncode == 0 or may_fail, done.stderr
    return done.stdout
