"""The published vectors of the wire contracts, held against our code. Runs in both environments."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts import assignment, events, release, routes, segments
from pipelines.contracts.errors import ContractError
from pipelines.contracts.pii import KeyedHash
from serving.online_features import feast_values, redis_layout
from serving.online_features.entity_keys import EntityKey

VECTORS = Path(__file__).parent / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def test_every_unit_draws_its_published_position_and_arms() -> None:
    cases = load("assignment")
    assert len(cases) > 20
    for case in cases:
        assert assignment.position(case["salt"], case["unit"]) == int(case["position"])
        for ppm, arm in case["arm_by_share_ppm"].items():
            assert assignment.draw(case["salt"], case["unit"], int(ppm)) == arm


def test_every_request_is_sampled_at_the_published_rates() -> None:
    for case in load("payload_sampling"):
        for ppm, logged in case["is_logged_by_ppm"].items():
            assert assignment.payload_is_logged(case["request_id"], int(ppm)) is logged


@given(st.text(st.characters(codec="utf-8")), st.lists(st.integers(0, assignment.PPM), min_size=2, max_size=2))
def test_raising_the_share_never_moves_a_unit_back_to_the_champion(unit: str, shares: list[int]) -> None:
    low, high = sorted(shares)
    if assignment.draw("salt", unit, low) == "challenger":
        assert assignment.draw("salt", unit, high) == "challenger"


@pytest.mark.parametrize("share", [-1, assignment.PPM + 1])
def test_a_share_that_is_no_share_is_refused(share: int) -> None:
    with pytest.raises(ContractError, match=r"got -?\d+; expected 0"):
        assignment.draw("s", "u", share)


def test_frames_have_their_published_bytes() -> None:
    for case in load("frames")["frames"]:
        payload = bytes.fromhex(case["payload"])
        made = segments.frame(case["n"], payload)
        assert made.hex() == case["frame"]
        assert list(segments.read_frames(segments.MAGIC + made)) == [(case["n"], payload, 8 + len(made))]


@pytest.mark.parametrize("case", load("frames")["segments"], ids=lambda case: case["why"])
def test_a_segment_is_read_up_to_its_first_frame_that_is_not_whole(case: dict[str, Any]) -> None:
    assert [one.n for one in segments.read_frames(bytes.fromhex(case["data"]))] == case["n"]


@given(st.lists(st.binary(max_size=60), max_size=6), st.data())
def test_a_segment_cut_anywhere_gives_a_prefix_of_its_frames(payloads: list[bytes], data: st.DataObject) -> None:
    whole = segments.MAGIC + b"".join(segments.frame(n, payload) for n, payload in enumerate(payloads))
    cut = data.draw(st.integers(0, len(whole)))
    found = list(segments.read_frames(whole[:cut]))
    assert [one.payload for one in found] == payloads[: len(found)]
    if found:
        assert found[-1].end <= cut
        rest = list(segments.read_frames(whole, found[-1].end))
        assert [one.payload for one in rest] == payloads[len(found) :]


def test_events_have_their_published_bytes() -> None:
    for case in load("events"):
        wire = bytes.fromhex(case["msgpack"])
        event = events.decode(wire)
        assert msgspec.msgpack.decode(wire) == case["event"]
        assert msgspec.msgpack.decode(events.encode(event)) == case["event"]
        assert events.decode(events.encode(event)) == event
    assert {case["event"]["kind"] for case in load("events")} == set(events.KINDS)


def test_routes_survive_the_wire_and_wrong_ones_are_refused() -> None:
    vectors = load("routes")
    for document in vectors["valid"]:
        route = routes.decode(json.dumps(document))
        assert routes.decode(routes.encode(route)) == route
        assert {key: msgspec.to_builtins(route)[key] for key in document} == document
    for case in vectors["invalid"]:
        with pytest.raises(ContractError, match="route"):
            routes.decode(json.dumps(case["document"]))
    with pytest.raises(ContractError, match="route document"):
        routes.decode(b"{")


def test_personal_values_have_their_published_hashes() -> None:
    for case in load("pii"):
        keyed = KeyedHash(case["key"])
        assert keyed.key_id == case["key_id"]
        for one in case["hashes"]:
            assert keyed.of(one["value"]) == one["hash"]


def test_without_a_key_nothing_is_hashed() -> None:
    with pytest.raises(ContractError, match="SLIPWAY_PII_KEY"):
        KeyedHash("")


def test_a_manifest_without_personal_inputs_says_nothing_of_them() -> None:
    manifest = release.Manifest(
        model="m",
        semver="1.0.0",
        task="binary",
        inputs=[release.InputField(name="a", datatype="BYTES")],
        features=[],
        files={},
    )
    written = release.manifest_bytes(manifest)
    assert b"pii" not in written
    assert b"dropped_inputs" not in written
    read = msgspec.json.decode(written, type=release.Manifest)
    assert [bool(one) for one in (read.inputs[0].pii, read.dropped_inputs, read.pii_key)] == [False, False, False]


@pytest.mark.parametrize("case", load("feast")["entity_keys"], ids=lambda case: ",".join(case["join_key_types"]))
def test_entity_keys_have_the_bytes_feast_gives_them(case: dict[str, Any]) -> None:
    key = EntityKey(case["join_key_types"])
    assert key.serialize([case["values"][name] for name in key.names]).hex() == case["key"]


def test_scalar_values_decode_as_feast_wrote_them() -> None:
    for case in load("feast")["values"]:
        decoded = feast_values.decode(bytes.fromhex(case["message"]))
        assert decoded == case["value"]
        assert type(decoded) is type(case["value"])


def test_redis_keys_fields_and_stamps_have_the_bytes_feast_gives_them() -> None:
    published = load("feast_redis")
    (key,) = published["keys"]
    ours = EntityKey({"origin": "string"}).serialize([key["origin"]]) + key["project"].encode()
    assert ours.hex() == key["key"]
    for case in published["fields"]:
        view, _, feature = case["name"].partition(":")
        assert redis_layout.feature_field(view, feature).hex() == case["field"]
    for case in published["stamps"]:
        assert redis_layout.stamp_us(bytes.fromhex(case["message"])) == case["us"]


@given(st.binary(max_size=60))
def test_whatever_lies_in_a_value_column_is_a_value_or_refused(data: bytes) -> None:
    with suppress(ContractError):
        feast_values.decode(data)


def test_a_value_of_an_unknown_kind_is_refused_by_its_number() -> None:
    with pytest.raises(ContractError, match="field 9"):
        feast_values.decode(bytes([9 << 3 | 2, 0]))


@pytest.mark.parametrize(
    ("types", "values"), [({"a": "int64"}, ["x"]), ({"a": "int32"}, [2**40]), ({"a": "blob"}, [1])]
)
def test_an_entity_key_of_another_type_is_refused(types: dict[str, str], values: list[object]) -> None:
    with pytest.raises(ContractError, match="key"):
        EntityKey(types).serialize(values)
