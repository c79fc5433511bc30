"""An S3 server for tests; own port, own keys; ended with the block.

VersityGW over a folder where it was built (`python3 scripts/setup.py --s3`: minutes of Go). Else moto's server, which
takes any keys and so shows nothing about them. `make proof` runs the tests of S3 on VersityGW.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs

from tests.free_ports import free_port

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
VERSITYGW = TOOLS / "bin" / "versitygw"
MOTO = TOOLS / "moto" / "bin" / "moto_server"
BUCKET = "lake"


class S3Server:
    """One server with one empty bucket. `folder` holds its objects as plain files (VersityGW only)."""

    def __init__(self, folder: Path, *, checks_keys: bool) -> None:
        self.folder = folder / "objects"
        self.checks_keys = checks_keys
        self.access, self.secret = secrets.token_hex(8), secrets.token_hex(16)
        self.endpoint = f"http://127.0.0.1:{free_port()}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs, as the AWS SDKs read it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def command(self) -> list[str]:
        address = self.endpoint.removeprefix("http://")
        if self.checks_keys:
            keys = ["--access", self.access, "--secret", self.secret]
            return [str(VERSITYGW), *keys, "--port", address, "--quiet", "posix", str(self.folder)]
        host, port = address.split(":")
        return [str(MOTO), "--host", host, "--port", port]

    def client(self) -> fs.S3FileSystem:
        return fs.S3FileSystem(
            access_key=self.access,
            secret_key=self.secret,
            endpoint_override=self.endpoint,
            region="us-east-1",
            allow_bucket_creation=True,
            allow_bucket_deletion=True,
        )


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """A server; the test is skipped where there is neither of the two, and fails there under CI=true."""
    if not VERSITYGW.exists() and not MOTO.exists():
        line = "there is no S3 server for tests: python3 scripts/setup.py --servers"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(line)
    folder = Path(tempfile.mkdtemp(prefix="slipway-s3-"))
    server = S3Server(folder, checks_keys=VERSITYGW.exists())
    server.folder.mkdir()
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(server.command(), stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                server.client().create_dir(BUCKET)
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the S3 server does not start ({error}):\n{log.read_text()}") from None
                time.sleep(0.05)  # it says nothing when it is ready
        yield server
    finally:
        process.kill()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)
