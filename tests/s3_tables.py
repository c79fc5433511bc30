"""A lake on the S3 server of tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.s3_storage import storage_options
from tests.s3_server import S3Server, running_s3


@contextmanager
def lake_on_s3() -> Iterator[tuple[DeltaLake, S3Server]]:
    """A lake in a server's bucket; its keys are in the environment meanwhile."""
    with running_s3() as server, pytest.MonkeyPatch.context() as patched:
        for name, value in server.environment.items():
            patched.setenv(name, value)
        yield DeltaLake("s3://lake/tables", storage_options(server.endpoint)), server
