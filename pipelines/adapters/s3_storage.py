"""How delta-rs, Arrow and Hadoop reach an S3 store: endpoint and keys, else what the environment says (`AWS_*`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_remote(path: str) -> bool:
    """Whether a path is a URI of a store, not of this machine's files."""
    return "://" in path and not path.startswith("file://")


def storage_options(endpoint: str = "", credentials: Mapping[str, str] | None = None) -> dict[str, str]:
    """delta-rs' options for a store.

    Commits are conditional puts (`If-None-Match`), so the store itself decides a race of writers. Plain HTTP is
    allowed only where the endpoint says `http://`.
    """
    options = {name: value for name, value in (credentials or {}).items() if value}
    options["aws_conditional_put"] = "etag"
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        options["AWS_ALLOW_HTTP"] = "true" if endpoint.startswith("http://") else "false"
    return options


def hadoop_options(endpoint: str = "", region: str = "") -> dict[str, str]:
    """Properties of Hadoop's S3A, which takes its keys from the environment by itself (`AWS_*`, or the machine's role).

    endpoint, region: empty for Amazon's own, which the SDK finds out.
    """
    # The default one takes another library, and reads ahead for Amazon's own S3.
    options = {"fs.s3a.input.stream.type": "classic"}
    if region:
        options["fs.s3a.endpoint.region"] = region
    if endpoint:
        # A store of one's own mostly has no name of its own for each bucket.
        options |= {"fs.s3a.endpoint": endpoint, "fs.s3a.path.style.access": "true"}
        options["fs.s3a.connection.ssl.enabled"] = "false" if endpoint.startswith("http://") else "true"
    return options


def arrow_filesystem(uri: str, endpoint: str = "", credentials: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """Arrow's file system of a URI, and the path within it. Raises ValueError for a scheme Arrow does not know."""
    from pyarrow import fs

    if not uri.startswith("s3://"):
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, str(path)
    given = credentials or {}
    names = {
        "access_key": "AWS_ACCESS_KEY_ID",
        "secret_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
        "region": "AWS_DEFAULT_REGION",
    }
    options = {ours: given[theirs] for ours, theirs in names.items() if given.get(theirs)}
    if endpoint:
        options["endpoint_override"] = endpoint
    return fs.S3FileSystem(**options), uri.removeprefix("s3://")
