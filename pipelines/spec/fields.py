"""Field types shared by the specs: names, schedules, references to transforms, and the strict base class."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
TransformRef = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_/]*\.py:[a-z_][a-z0-9_]*$")]
TransformFile = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_/]*\.py$")]
ColumnType = Literal["int32", "int64", "float32", "float64", "string", "bool", "timestamp", "date"]
FeatureType = Literal["int32", "int64", "float32", "float64", "string", "bool"]
KeyType = Literal["string", "int64", "int32"]

NUMERIC = frozenset({"int32", "int64", "float32", "float64"})


def _cron(value: str) -> str:
    if value.startswith("@"):
        if value not in ("@hourly", "@daily", "@weekly", "@monthly", "@yearly", "@once"):
            raise ValueError(
                f"schedule '{value}'; expected five cron fields, or @hourly, @daily, @weekly, @monthly, @once"
            )
        return value
    fields = value.split()
    if len(fields) != 5 or not all(set(field) <= set("0123456789*/,-") for field in fields):
        raise ValueError(f"schedule '{value}'; expected five cron fields, for example '0 3 * * *'")
    return value


Schedule = Annotated[str, AfterValidator(_cron)]


class Strict(BaseModel):
    """Base of every spec: unknown keys are errors, numbers are finite, values are not coerced into other types,
    instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
