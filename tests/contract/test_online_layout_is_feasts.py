"""What the Feast SDK writes online is what the gateway reads, on SQLite and Redis: every type, keys, nulls, times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipelines.contracts.clocks import to_us
from serving.online_features import feast_values
from tests.contract.feast_repositories import STORES, Repository, installation

pytest.importorskip("feast", reason="the serving environment has no Feast; this runs in the other one")

AT = datetime(2013, 1, 1, 11, 30, 15, 250_000, tzinfo=UTC)
HOUR = 3_600_000_000
KEYS = {"origin": "string", "number": "int64"}


def samples() -> dict[str, list[Any]]:
    """Values of every kind that Feast's `Value` message has, by the name of its member."""
    from feast.protos.feast.types import Value_pb2 as pb

    texts, numbers, moments = ["a", "", "Zürich"], [0, -(2**31), 2**31 - 1], [1_357_016_400, -(2**63), 0]
    uuid = "12345678-1234-5678-1234-567812345678"
    nested = [pb.Value(double_val=1.5), pb.Value(int64_list_val=pb.Int64List(val=[1, 2])), pb.Value()]
    inner = pb.Map(
        val={
            "x": pb.Value(int32_val=-1),
            "": pb.Value(),
            "deep": pb.Value(map_val=pb.Map(val={"y": pb.Value(bool_val=True)})),
        }
    )
    entries = [
        pb.ScalarMapEntry(key=pb.MapKey(**{name: value}), value=pb.Value(string_val=name))
        for name, value in (
            ("int32_key", -3), ("int64_key", 2**60), ("float_key", 0.25), ("double_key", 0.1), ("bool_key", True),
            ("unix_timestamp_key", 1_357_016_400), ("bytes_key", b"k"), ("uuid_key", uuid), ("decimal_key", "1.50"),
        )
    ]  # fmt: skip
    wide = [-(2**63), 2**63 - 1, 0]
    return {
        "bytes_val": [b"abc", b"", b"\x00\xff"],
        "string_val": [*texts, "x" * 300],
        "int32_val": numbers,
        "int64_val": wide,
        "double_val": [0.1, -0.0, 1e308, float("inf")],
        "float_val": [1.5, -2.5, 0.0],
        "bool_val": [True, False],
        "unix_timestamp_val": moments,
        "bytes_list_val": [pb.BytesList(val=[b"a", b""]), pb.BytesList()],
        "string_list_val": [pb.StringList(val=texts), pb.StringList()],
        "int32_list_val": [pb.Int32List(val=numbers), pb.Int32List()],
        "int64_list_val": [pb.Int64List(val=wide)],
        "double_list_val": [pb.DoubleList(val=[0.1, -2.0]), pb.DoubleList()],
        "float_list_val": [pb.FloatList(val=[0.5, -2.0])],
        "bool_list_val": [pb.BoolList(val=[True, False])],
        "unix_timestamp_list_val": [pb.Int64List(val=[0, 1_357_016_400])],
        "null_val": [0],
        "map_val": [inner, pb.Map()],
        "map_list_val": [pb.MapList(val=[inner, pb.Map()])],
        "bytes_set_val": [pb.BytesSet(val=[b"a", b"b"])],
        "string_set_val": [pb.StringSet(val=texts)],
        "int32_set_val": [pb.Int32Set(val=numbers)],
        "int64_set_val": [pb.Int64Set(val=wide)],
        "double_set_val": [pb.DoubleSet(val=[0.1, 2.0])],
        "float_set_val": [pb.FloatSet(val=[0.5])],
        "bool_set_val": [pb.BoolSet(val=[True, False])],
        "unix_timestamp_set_val": [pb.Int64Set(val=[0, 1_357_016_400])],
        "json_val": ['{"a": [1, null]}'],
        "json_list_val": [pb.StringList(val=['{"a": 1}', "2"])],
        "struct_val": [inner],
        "struct_list_val": [pb.MapList(val=[inner])],
        "uuid_val": [uuid],
        "time_uuid_val": [uuid],
        "uuid_list_val": [pb.StringList(val=[uuid])],
        "time_uuid_list_val": [pb.StringList(val=[uuid])],
        "uuid_set_val": [pb.StringSet(val=[uuid])],
        "time_uuid_set_val": [pb.StringSet(val=[uuid])],
        "list_val": [pb.RepeatedValue(val=nested)],
        "set_val": [pb.RepeatedValue(val=nested[:1])],
        "decimal_val": ["1.50"],
        "decimal_list_val": [pb.StringList(val=["1.50", "-2"])],
        "decimal_set_val": [pb.StringSet(val=["1.50"])],
        "scalar_map_val": [pb.ScalarMap(val=entries)],
        "zoned_timestamp_val": [pb.ZonedTimestamp(unix_timestamp=1_357_016_400, zone="America/New_York")],
    }


def dtypes() -> dict[str, Any]:
    """Feast's field type of each member; those that only the message knows are read back by it all the same."""
    from feast.types import String, from_value_type
    from feast.value_type import ValueType

    bare = ("null_val", "list_val", "set_val")
    return {
        name: String if name in bare else from_value_type(ValueType[name.removesuffix("_val").upper()])
        for name in samples()
    }


def plain(value: Any) -> Any:
    """The SDK's Python value in the words of the gateway."""
    if isinstance(value, datetime):
        return int(value.timestamp())
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(one) for one in value), key=repr)
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    return value


def ours_as(theirs: Any, name: str, value: Any) -> Any:
    """The gateway keeps JSON as text, and a set as a list in the order it was written."""
    if name == "json_val" and value is not None:
        return json.loads(value)
    if name == "json_list_val" and value is not None:
        return [json.loads(one) for one in value]
    return sorted(value, key=repr) if isinstance(theirs, (set, frozenset)) else value


def test_the_samples_cover_every_member_of_feasts_value() -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    assert list(samples()) == [field.name for field in Value.DESCRIPTOR.fields]


@pytest.fixture(scope="module", params=STORES)
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    with installation(request.param, tmp_path_factory.mktemp(request.param)) as settings:
        yield Repository(settings, "places__3f2a", KEYS, dtypes())


def test_every_value_of_every_type_is_what_the_sdk_reads(places: Repository) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    of_each = samples()
    longest = max(map(len, of_each.values()))
    entities = [{"origin": "EWR", "number": n} for n in range(longest)]
    for n, entity in enumerate(entities):
        values = {name: Value(**{name: cases[n % len(cases)]}) for name, cases in of_each.items()}
        places.write(entity, values, AT)
    sdk, read = places.by_sdk(*entities), places.by_gateway(to_us(AT) + HOUR, *entities)
    assert read.degraded == ""
    decoded = _decoded(places, entities)
    for place, name in enumerate(places.features):
        for n in range(longest):
            # The SDK shows the number of the enumeration that stands for null.
            theirs = None if name == "null_val" else sdk[name][n]
            assert ours_as(theirs, name, decoded[name][n]) == plain(theirs), (name, n)
            logged = read.logged.values[place][n]
            if isinstance(decoded[name][n], (list, dict)):
                assert json.loads(logged) == json.loads(json.dumps(decoded[name][n])), (name, n)
            else:
                assert logged == decoded[name][n], (name, n)


def _decoded(places: Repository, entities: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What the gateway's decoder makes of the stored bytes, found by the SDK's own low-level read."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    keys = [
        EntityKey(
            join_keys=["origin", "number"],
            entity_values=[Value(string_val=one["origin"]), Value(int64_val=one["number"])],
        )
        for one in entities
    ]
    rows = places.store._get_provider().online_read(places.store.config, places.view, keys, list(places.features))
    return {name: [feast_values.decode(row[name].SerializeToString()) for _, row in rows] for name in places.features}


def test_missing_rows_and_missing_features_are_null_as_in_the_sdk(places: Repository) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    places.write({"origin": "JFK", "number": -7}, {"double_val": Value(double_val=2.5)}, AT)
    asked = [{"origin": "JFK", "number": -7}, {"origin": "JFK", "number": 7}, {"origin": "EWR", "number": -7}]
    sdk, read = places.by_sdk(*asked), places.by_gateway(to_us(AT) + HOUR, *asked)
    assert sdk["double_val"] == [2.5, None, None]
    assert sdk["string_val"] == [None] * 3
    assert {name: read.logged.values[n] for n, name in enumerate(places.features)} == {
        name: sdk[name] for name in places.features
    }
    assert [at is None for at in read.logged.event_us] == [False, True, True]
    assert read.degraded == "places__3f2a: missing"


def test_a_row_past_its_time_to_live_is_read_by_the_sdk_and_not_by_the_gateway(places: Repository) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    whole = AT.replace(microsecond=0)
    key = {"origin": "LGA", "number": 1}
    places.write(key, {"double_val": Value(double_val=2.5)}, whole)
    column = places.features.index("double_val")
    assert places.by_sdk(key)["double_val"] == [2.5]
    for later, value, said in ((HOUR, 2.5, ""), (HOUR + 1, None, "expired"), (-1, None, "from after the request")):
        read = places.by_gateway(to_us(whole) + later, key, ttl_us=HOUR)
        assert read.logged.values[column] == [value]
        assert said in read.degraded
        assert bool(read.degraded) == bool(said)


def test_the_moment_of_a_row_is_kept_as_finely_as_the_store_keeps_it(places: Repository) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    key = {"origin": "BOS", "number": 1}
    places.write(key, {"double_val": Value(double_val=2.5)}, AT + timedelta(seconds=1))
    finest = 1 if places.settings.online_store == "redis" else 1_000_000
    expected = to_us(AT) // finest * finest + 1_000_000
    assert places.by_gateway(to_us(AT) + HOUR, key).logged.event_us == [expected]
    assert places.by_sdk(key)["double_val__ts"] == [(to_us(AT) + 1_000_000) // 1_000_000]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("types", "key"),
    [
        ({"carrier": "string"}, {"carrier": "Zürich 日本"}),
        ({"plane": "int64"}, {"plane": -(2**62)}),
        ({"plane": "int32"}, {"plane": -5}),
        ({"b": "int64", "a": "string", "c": "int32"}, {"b": 2**40, "a": "", "c": 7}),
    ],
    ids=lambda one: ",".join(map(str, one)) if isinstance(one, dict) else one,
)
def test_keys_of_every_type_and_several_columns_are_found(
    tmp_path: Path, store: str, types: dict[str, str], key: dict[str, Any]
) -> None:
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import Float64

    with installation(store, tmp_path) as settings:
        repository = Repository(settings, "keyed__0001", types, {"f": Float64})
        repository.write(key, {"f": Value(double_val=4.25)}, AT)
        assert repository.by_sdk(key)["f"] == [4.25]
        assert repository.by_gateway(to_us(AT) + HOUR, key).logged.values == [[4.25]]
