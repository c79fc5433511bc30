"""A lake on the S3 server of tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.s3_storage import storage_options
from tests.s3_server import BUCKET, S3Server


@contextmanager
def lake_on_s3(server: S3Server) -> Iterator[DeltaLake]:
    """A lake in a server's bucket, emptied afterwards; its keys are in the environment meanwhile."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in server.environment.items():
            patched.setenv(name, value)
        try:
            yield DeltaLake(f"s3://{BUCKET}/tables", storage_options(server.endpoint))
        finally:
            server.client().delete_dir_contents(BUCKET)
