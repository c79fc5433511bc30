"""The gateway's paths as an OpenAPI 3.1 document, and the page at `/` that shows it.

Bodies are described by the types that read them. The page is Swagger UI as BentoML brings it along; BentoML's own page
loads a script of a third party, which has no place where operators enter a token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from serving.feedback import KpisBody, LabelsBody
from serving.oip.request import InferRequest
from serving.oip.response import server_metadata
from serving.rollback import RollbackBody

_TEXT = (
    "Open Inference Protocol v2, labels and KPIs, operation. Inputs and outputs of a model: `GET /v2/models/{model}`."
)
PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Slipway gateway</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script src="./static_content/swagger-ui-standalone-preset.js"></script>
<script src="./static_content/swagger-initializer.js"></script>
</body>
</html>
"""
PAGE_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"),
)
_SCHEMAS = "#/components/schemas/{name}"


class _Operation(NamedTuple):
    """One method of a path; `scheme` is of the token that it takes, if any, and needs unless `optional`."""

    path: str
    method: str
    summary: str
    body: type | None = None
    status: int = 200
    scheme: str = ""
    optional: bool = False


OPERATIONS = (
    _Operation("/v2", "get", "The server"),
    _Operation("/v2/health/live", "get", "Whether it lives"),
    _Operation("/v2/health/ready", "get", "Whether it can answer"),
    _Operation("/v2/models/{model}", "get", "Inputs, outputs and versions of a model"),
    _Operation("/v2/models/{model}/ready", "get", "Whether the model can answer"),
    _Operation("/v2/models/{model}/infer", "post", "Answer by the model's route", InferRequest, scheme="client"),
    _Operation("/v2/models/{model}/versions/{version}", "get", "Inputs and outputs of a release"),
    _Operation("/v2/models/{model}/versions/{version}/ready", "get", "Whether the release can answer"),
    _Operation(
        "/v2/models/{model}/versions/{version}/infer", "post", "Answer by one release; nothing is logged", InferRequest,
        scheme="client",
    ),
    _Operation("/v1/models/{model}/labels", "post", "What became true", LabelsBody, 202, "client"),
    _Operation("/v1/models/{model}/kpis", "post", "What it was worth", KpisBody, 202, "client"),
    _Operation("/v1/models/{model}/rollback", "post", "Reduce exposure now", RollbackBody, scheme="operator"),
    _Operation(
        "/v1/routes", "get", "Routes and overrides in force; salts with the token", scheme="operator", optional=True,
    ),
    _Operation("/metrics", "get", "Series for Prometheus"),
)  # fmt: skip


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    bodies = [InferRequest, LabelsBody, KpisBody, RollbackBody]
    _, schemas = msgspec.json.schema_components(bodies, ref_template=_SCHEMAS)
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _described(one)
    server = server_metadata()
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": server["name"], "version": server["version"], "description": _TEXT},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"client": bearer, "operator": bearer}},
    }


def _described(one: _Operation) -> dict[str, Any]:
    named = [part[1:-1] for part in one.path.split("/") if part.startswith("{")]
    text = {"type": "string"}
    made: dict[str, Any] = {
        "summary": one.summary,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": text} for name in named],
        "responses": {
            str(one.status): {"description": "Done"},
            "default": {"description": '{"error": "..."}: what was got, and what was expected'},
        },
    }
    if one.body is not None:
        schema = {"$ref": _SCHEMAS.format(name=one.body.__name__)}
        made["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    if one.scheme:
        # Predictions, labels and KPIs need a token only where the gateway has one.
        made["security"] = [{one.scheme: []}] + [{}] * (one.optional or one.scheme == "client")
    return made
