"""The alert rules made of the views' specs, as Prometheus itself judges them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import feature as cli
from pipelines.settings import PROJECT
from pipelines.spec.loading import load_view, names
from tests.prometheus_server import program


@pytest.mark.parametrize("of", ["now", "before"])
def test_each_view_raises_the_alert_its_spec_names_past_its_own_freshness(of: str, tmp_path: Path) -> None:
    """Of whatever version: a champion may read the one from before a change of the view."""
    printed = CliRunner().invoke(cli.app, ["alerts"]).output
    (tmp_path / "rules.yaml").write_text(printed)
    weather = load_view(PROJECT / "include", "weather_at_origin")
    version = weather.feast_name(PROJECT / "include") if of == "now" else "weather_at_origin__0a1b"
    listed = yaml.safe_load(printed)["groups"][0]["rules"]
    assert len(listed) == len(names(PROJECT / "include", "features"))

    def series(age_s: int) -> list[dict[str, str]]:
        return [{"series": f'slipway_view_age_seconds{{view="{version}",instance="a"}}', "values": f"{age_s}x20"}]

    def fires(alerts: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{"eval_time": "10m", "alertname": "WeatherStale", "exp_alerts": alerts}]

    bar = weather.freshness.us // 1_000_000
    described = next(rule["annotations"] for rule in listed if rule["alert"] == "WeatherStale")
    fired = {
        "exp_labels": {"severity": "warn", "owner": weather.owner, "view": version},
        "exp_annotations": described | {"summary": f"{version} is 4h 0m 1s old"},
    }
    cases = [
        {"interval": "1m", "input_series": series(bar), "alert_rule_test": fires([])},
        {"interval": "1m", "input_series": series(bar + 1), "alert_rule_test": fires([fired])},
    ]
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": cases}))
    done = subprocess.run(
        [program("promtool"), "test", "rules", "cases.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
