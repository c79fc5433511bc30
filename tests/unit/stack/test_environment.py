"""What every part gets: one installation's settings, and secrets made once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines.settings import PROJECT, Settings
from pipelines.stack import airflow_password, part_environment
from pipelines.stack.credentials import read_or_make


@pytest.fixture(autouse=True)
def no_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLIPWAY_TOKEN", "SLIPWAY_PII_KEY", "SLIPWAY_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_settings_given_by_keyword_reach_the_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = part_environment(Settings(home=Path("here"), clock="replay", gateway_port=3456))
    assert environment["SLIPWAY_HOME"] == str(tmp_path / "here")
    assert environment["SLIPWAY_CLOCK"] == "replay"
    assert environment["SLIPWAY_GATEWAY_PORT"] == "3456"


def test_a_part_reads_back_the_settings_it_was_started_with(tmp_path, monkeypatch):
    given = Settings(home=tmp_path, clock="replay", airflow_port=8181, include_dir=tmp_path / "specs", token="t0p")
    for name, value in part_environment(given).items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert read.model_dump(exclude={"pii_key"}) == given.model_dump(exclude={"pii_key"})
    assert read.token.get_secret_value() == "t0p"


def test_secrets_are_made_once_for_a_home_and_are_their_owners_alone(tmp_path):
    settings = Settings(home=tmp_path)
    first, second = part_environment(settings), part_environment(settings)
    for name in ("SLIPWAY_TOKEN", "SLIPWAY_PII_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY"):
        assert first[name]
        assert first[name] == second[name]
    assert len(first["AIRFLOW__API_AUTH__JWT_SECRET"]) >= 64
    for file in settings.secrets_dir.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize("name", ["control_url", "airflow_db", "mlflow_db", "feast_registry"])
def test_what_is_wrong_with_a_database_url_is_told_without_its_password(tmp_path, name):
    with pytest.raises(ValidationError) as told:
        Settings(home=tmp_path, **{name: "postgressql://slipway:hunter2@db/slipway"})
    assert name in str(told.value)
    assert "postgres" in str(told.value)
    assert "hunter2" not in str(told.value)


def test_two_homes_have_different_secrets(tmp_path):
    one, other = (part_environment(Settings(home=tmp_path / name)) for name in ("one", "other"))
    assert one["SLIPWAY_TOKEN"] != other["SLIPWAY_TOKEN"]


def test_whoever_opens_the_home_later_finds_its_token(tmp_path):
    made = part_environment(Settings(home=tmp_path))["SLIPWAY_TOKEN"]
    assert Settings(home=tmp_path).token.get_secret_value() == made
    assert Settings(home=tmp_path, token="mine").token.get_secret_value() == "mine"


def test_a_token_that_was_given_is_kept_for_whoever_opens_the_home_later(tmp_path):
    for token in ("first", "second"):
        part_environment(Settings(home=tmp_path, token=token))
        assert Settings(home=tmp_path).token.get_secret_value() == token
        assert stat.S_IMODE((tmp_path / "secrets" / "token").stat().st_mode) == 0o600


def test_secrets_do_not_show_when_settings_are_printed(tmp_path):
    token = part_environment(Settings(home=tmp_path))["SLIPWAY_TOKEN"]
    assert token not in repr(Settings(home=tmp_path))


def test_a_secret_that_is_there_is_never_replaced(tmp_path):
    (tmp_path / "secret").write_text("kept\n")
    assert read_or_make(tmp_path / "secret") == "kept"


def test_airflow_users_have_passwords_beforehand(tmp_path):
    settings = Settings(home=tmp_path)
    passwords = {airflow_password(settings, user) for user in ("admin", "approver", "viewer")}
    assert len(passwords) == 3
    assert passwords == {airflow_password(settings, user) for user in ("admin", "approver", "viewer")}


def test_modules_of_the_checkout_come_first_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    path = part_environment(Settings(home=tmp_path))["PYTHONPATH"].split(":")
    assert path == [str(PROJECT), str(PROJECT / "config"), "/elsewhere"]


def test_a_copy_of_the_settings_with_another_home_writes_there(tmp_path):
    settings = Settings(home=tmp_path / "one")
    assert settings.root == tmp_path / "one"
    assert settings.model_copy(update={"home": tmp_path / "other"}).lake == tmp_path / "other" / "lake"


@pytest.mark.parametrize("setting", ["control_url", "airflow_db", "mlflow_db", "feast_registry"])
def test_a_database_that_nobody_here_can_read_is_refused_at_the_start(setting, tmp_path):
    with pytest.raises(ValueError, match=setting):
        Settings(home=tmp_path, **{setting: "mysql://u@h/d"})
    given = Settings(home=tmp_path, **{setting: "postgresql://u:sesame@h/d"})
    assert "sesame" not in repr(given)


def test_databases_on_a_server_reach_airflow_and_mlflow(tmp_path):
    urls = {"airflow_db": "postgresql://u:p@h/airflow", "mlflow_db": "postgresql://u:p@h/mlflow"}
    environment = part_environment(Settings(home=tmp_path, **urls))
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == urls["airflow_db"]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == urls["mlflow_db"]
    on_sqlite = part_environment(Settings(home=tmp_path))
    assert on_sqlite["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith(f"sqlite:///{tmp_path}")
