"""Writes the published test vectors of the wire contracts: `python -m tests.contract.make_vectors` (orchestration).

The expected values are computed here from the contract's words, with hashlib, struct and msgspec's plain encoder, and
with Feast's own functions, not by the code under test. Vectors are never changed: a new schema gets new ones.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent / "vectors"


def assignment() -> list[dict[str, Any]]:
    cases = []
    units = ["", "a", "user-1", "user-2", "9f86d081", "Zürich", "日本", "x" * 300, "EWR:2013-01-01T05:15:00Z"]
    for salt in ("", "late_arrival-r1", "sål\u00fct"):
        for unit in units:
            position = int.from_bytes(hashlib.sha256(salt.encode() + b"\0" + unit.encode()).digest()[:8], "big")
            arms = {
                str(ppm): "challenger" if position * 1_000_000 < ppm * (1 << 64) else "champion"
                for ppm in (0, 1, 50_000, 200_000, 500_000, 999_999, 1_000_000)
            }
            cases.append({"salt": salt, "unit": unit, "position": str(position), "arm_by_share_ppm": arms})
    return cases


def payload_sampling() -> list[dict[str, Any]]:
    rates = (0, 1, 10_000, 300_000, 999_999, 1_000_000)
    cases = []
    for request_id in ("", "a", "q1", "q2", "q3", "Zürich", "x" * 256, "9f86d081884c7d659a2feaa0c55ad015"):
        position = int.from_bytes(hashlib.sha256(b"slipway-payload\0" + request_id.encode()).digest()[:8], "big")
        logged = {str(ppm): position * 1_000_000 < ppm * (1 << 64) for ppm in rates}
        cases.append({"request_id": request_id, "is_logged_by_ppm": logged})
    return cases


def frames() -> dict[str, Any]:
    import google_crc32c

    made: list[dict[str, Any]] = []
    for n, payload in [
        (0, b""),
        (1, b"abc"),
        (7, bytes(range(256))),
        (2**40, b"\x81\xa4kind\xa5label"),
        (3, b"z" * 5000),
    ]:
        covered = struct.pack("<IQ", len(payload), n)
        crc = google_crc32c.value(covered + payload)
        made.append({"n": n, "payload": payload.hex(), "frame": (covered + struct.pack("<I", crc) + payload).hex()})
    whole = b"SLIPLOG1" + b"".join(bytes.fromhex(one["frame"]) for one in made[:3])
    flipped = bytearray(whole)
    flipped[8 + 16 + 16 + 2] ^= 0x40
    segments = [
        {"why": "whole", "data": whole.hex(), "n": [0, 1, 7]},
        {"why": "last frame torn in its payload", "data": whole[:-1].hex(), "n": [0, 1]},
        {"why": "last frame torn in its header", "data": whole[: 8 + 16 + 19 + 5].hex(), "n": [0, 1]},
        {"why": "a flipped bit in the second payload", "data": flipped.hex(), "n": [0]},
        {"why": "magic alone", "data": b"SLIPLOG1".hex(), "n": []},
        {"why": "torn magic", "data": b"SLIPL".hex(), "n": []},
        {"why": "another magic", "data": (b"SLIPLOG9" + whole[8:]).hex(), "n": []},
        {"why": "empty", "data": "", "n": []},
    ]
    return {"frames": made, "segments": segments}


def routes() -> dict[str, Any]:
    champion, challenger, fallback = "a" * 64, "b" * 64, "c" * 64
    base = {"schema": "slipway-route/1", "model": "late_arrival", "version": 3, "champion": champion}
    split = {
        **base,
        "mode": "split",
        "challenger": challenger,
        "rollout_id": "r1",
        "decision_id": "d4",
        "stage": "canary_05",
        "share_ppm": 50_000,
        "shadow": True,
        "salt": "s",
        "clears_overrides": ["gw0/0/17/3"],
        "breaker": {"window": 50, "failures": 5, "timeout_ms": 250},
        "slice_inputs": ["origin"],
    }
    shadow = {
        **base,
        "mode": "shadow",
        "challenger": challenger,
        "rollout_id": "r1",
        "shadow": True,
        "salt": "s",
        "stage": "shadow",
    }
    valid = [
        {**base, "mode": "single"},
        {**base, "mode": "single", "fallback": fallback, "stage": "bake"},
        shadow,
        split,
    ]
    invalid = [
        {"why": "another schema", "document": {**base, "mode": "single", "schema": "slipway-route/2"}},
        {"why": "unknown mode", "document": {**base, "mode": "canary"}},
        {"why": "no champion", "document": {k: v for k, v in base.items() if k != "champion"} | {"mode": "single"}},
        {"why": "single with a challenger", "document": {**base, "mode": "single", "challenger": challenger}},
        {"why": "single with a share", "document": {**base, "mode": "single", "share_ppm": 1}},
        {"why": "shadow with a share", "document": {**shadow, "share_ppm": 1}},
        {"why": "shadow without shadow", "document": {**shadow, "shadow": False}},
        {"why": "split without salt", "document": {**split, "salt": ""}},
        {"why": "split without rollout", "document": {**split, "rollout_id": None}},
        {"why": "share beyond one", "document": {**split, "share_ppm": 1_000_001}},
        {"why": "negative share", "document": {**split, "share_ppm": -1}},
        {"why": "share as a float", "document": {**split, "share_ppm": 0.05}},
    ]
    return {"valid": valid, "invalid": invalid}


def events() -> list[dict[str, Any]]:
    import msgspec

    common = {"model": "late_arrival", "request_id": "q1", "event_us": 1_357_016_400_000_000}
    wall = {"wall_us": 1_760_000_000_000_123}
    read = ["weather__3f2a", ["temp", "wind"], [1_357_012_800_000_000, None], [[39.0, None], [12.5, None]]]
    maps: list[dict[str, Any]] = [
        {
            "kind": "assignment",
            "id": ["gw0", 0, 17, 0],
            **common,
            **wall,
            "arm": "champion",
            "share_ppm": 0,
            "salt": "",
            "unit": "q1",
            "mode": "single",
            "stage": "live",
            "rollout_id": None,
            "route_version": 1,
            "champion": "a" * 64,
        },
        {
            "kind": "assignment",
            "id": ["gw0", 1, 17, 2**40],
            **common,
            **wall,
            "arm": "challenger",
            "share_ppm": 50_000,
            "salt": "s",
            "unit": "user-1",
            "mode": "split",
            "stage": "canary_05",
            "rollout_id": "r1",
            "route_version": 9,
            "champion": "a" * 64,
            "challenger": "b" * 64,
            "rows": 2,
            "slices": {"origin": "EWR"},
            "inputs": {"carrier": ["UA", None], "distance": [1400.0, 3], "international": [True, False]},
            "retry": True,
            "paired": True,
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
        {
            "kind": "response",
            "id": ["gw0", 0, 17, 1],
            **common,
            "arm": "champion",
            "release": "a" * 64,
            "rollout_id": None,
            **wall,
            "status": "ok",
            "served": True,
        },
        {
            "kind": "response",
            "id": ["gw0", 0, 17, 2],
            **common,
            "arm": "challenger",
            "release": "b" * 64,
            "rollout_id": "r1",
            **wall,
            "status": "invalid",
            "served": False,
            "shadow": True,
            "raw": [0.25, 1.5],
            "score": [0.5, 2.0],
            "outputs": {"score": [0.5, 2.0], "decision": [True, None]},
            "latency_us": 900,
            "features_us": 300,
            "model_us": 200,
            "features": [read],
            "degraded": ["weather__3f2a: missing"],
        },
        {
            "kind": "response",
            "id": ["gw0", 0, 17, 3],
            **common,
            "arm": "challenger",
            "release": "b" * 64,
            "rollout_id": "r1",
            **wall,
            "status": "error",
            "served": False,
            "latency_us": 1_000_000,
            "error": "timeout after 1000 ms",
        },
        {"kind": "label", "id": ["gw0", 0, 17, 4], **common, "value": 1.0, **wall},
        {"kind": "label", "id": ["gw0", 0, 17, 5], **common, "row": 1, "value": -3.5, **wall},
        {"kind": "kpi", "id": ["gw0", 0, 17, 6], **common, "name": "cost", "value": 7.0, **wall},
        {
            "kind": "override",
            "id": ["gw0", 0, 17, 7],
            "model": "late_arrival",
            "rollout_id": "r1",
            "route_version": 9,
            "reason": "20 of the last 100 challenger calls failed",
            "actor": "circuit-breaker",
            "event_us": common["event_us"],
            **wall,
        },
        {
            "kind": "response",
            "id": ["gw0", 0, 17, 8],
            **common,
            "arm": "champion",
            "release": "a" * 64,
            "rollout_id": "r1",
            **wall,
            "status": "ok",
            "served": False,
            "shadow": True,
            "raw": [0.25, 1.5],
            "score": [0.5, 2.0],
            "latency_us": 1_300,
            "beside_us": 1_250,
            "features_us": 300,
            "model_us": 200,
        },
    ]
    return [{"event": one, "msgpack": msgspec.msgpack.encode(one).hex()} for one in maps]


def feast() -> dict[str, Any]:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    keys = []
    entities: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({"carrier": "string"}, {"carrier": "UA"}),
        ({"tailnum": "string"}, {"tailnum": ""}),
        ({"ort": "string"}, {"ort": "Zürich 日本"}),
        ({"plane": "int64"}, {"plane": -(2**62)}),
        ({"plane": "int32"}, {"plane": -5}),
        ({"at": "timestamp"}, {"at": 1_357_016_400}),
        ({"origin": "string", "dest": "string"}, {"origin": "EWR", "dest": "IAH"}),
        ({"b": "int64", "a": "string", "c": "int32"}, {"b": 2**40, "a": "x", "c": 7}),
    ]
    for types, values in entities:
        fields = {"string": "string_val", "int64": "int64_val", "int32": "int32_val", "timestamp": "unix_timestamp_val"}
        proto = EntityKey(join_keys=list(types), entity_values=[Value(**{fields[types[k]]: values[k]}) for k in types])
        serialized = serialize_entity_key(proto, entity_key_serialization_version=3)
        keys.append({"join_key_types": types, "values": values, "key": serialized.hex()})
    scalars: list[tuple[dict[str, Any], Any]] = [
        ({"double_val": 0.1}, 0.1),
        ({"double_val": 0.0}, 0.0),
        ({"float_val": 1.5}, 1.5),
        ({"int64_val": -(2**63)}, -(2**63)),
        ({"int64_val": 2**63 - 1}, 2**63 - 1),
        ({"int64_val": 0}, 0),
        ({"int32_val": -7}, -7),
        ({"string_val": "Zürich"}, "Zürich"),
        ({"string_val": "x" * 300}, "x" * 300),
        ({"bytes_val": b"abc"}, "abc"),
        ({"bool_val": True}, True),
        ({"bool_val": False}, False),
        ({"unix_timestamp_val": 1_357_016_400}, 1_357_016_400),
        ({"null_val": 0}, None),
        ({}, None),
    ]
    values_out = [{"value": plain, "message": Value(**proto).SerializeToString().hex()} for proto, plain in scalars]
    return {"entity_keys": keys, "values": values_out}


def feast_redis() -> dict[str, Any]:
    from feast.infra.online_stores.helpers import _mmh3, _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.timestamp_pb2 import Timestamp

    names = ["weather__3f2a:temp", "v:", "v:a", "v:ab", "v:abc", "Zürich__1:日本", "x" * 200 + ":y"]
    proto = EntityKey(join_keys=["origin"], entity_values=[Value(string_val="EWR")])
    micros = [0, 1, 999_999, 1_000_000, 1_357_016_400_250_001, 2_000_000_000_000_000, -1, -1_000_000]
    return {
        "keys": [{"project": "slipway", "origin": "EWR", "key": _redis_key("slipway", proto, 3).hex()}],
        "fields": [{"name": name, "field": _mmh3(name).hex()} for name in names],
        "stamps": [
            {"us": us, "message": Timestamp(seconds=us // 10**6, nanos=us % 10**6 * 1000).SerializeToString().hex()}
            for us in micros
        ],
    }


def pii() -> list[dict[str, Any]]:
    """HMAC by the words of RFC 2104, with SHA-256 (blocks of 64 bytes)."""

    def mac(key: str, data: bytes) -> str:
        block = key.encode()
        block = (hashlib.sha256(block).digest() if len(block) > 64 else block).ljust(64, b"\0")
        inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + data).digest()
        return hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).hexdigest()

    values = ["", "a", "anna@example.com", "Anna@example.com", "123", "Zürich", "日本", "x" * 300, "\x00slipway pii"]
    return [
        {
            "key": key,
            "key_id": mac(key, b"\0slipway pii key")[:16],
            "hashes": [{"value": value, "hash": mac(key, value.encode())[:32]} for value in values],
        }
        for key in ("k", "5f" * 32, "schlüssel" * 20)
    ]


def main() -> None:
    made = {"assignment": assignment(), "frames": frames(), "routes": routes(), "events": events(), "feast": feast()}
    made["feast_redis"] = feast_redis()
    made["pii"] = pii()
    made["payload_sampling"] = payload_sampling()
    VECTORS.mkdir(exist_ok=True)
    for name, content in made.items():
        (VECTORS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
