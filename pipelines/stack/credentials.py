"""The secrets of a home: made once, readable by their owner alone."""

from __future__ import annotations

import json
import os
import secrets
import threading
from pathlib import Path

from pipelines.settings import Settings

AIRFLOW_USERS = {"admin": "admin", "approver": "op", "viewer": "viewer"}
"""User name to role, of Airflow's simple auth manager."""


def read_or_make(path: Path, bits: int = 256) -> str:
    """The secret in `path`; made, with mode 0600, when there is none. Safe when two processes ask at once."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _write_once(path, secrets.token_hex(bits // 8))
    return path.read_text().strip()


def keep(path: Path, secret: str) -> None:
    """Write a secret that was given, in the place of any other."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists() or path.read_text().strip() != secret:
        _draft(path, secret).replace(path)


def _draft(path: Path, text: str) -> Path:
    """A file beside `path` that only its owner may read."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    return draft


def _write_once(path: Path, text: str) -> None:
    """Write a new file whole; a file that is already there wins."""
    draft = _draft(path, text)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def airflow_passwords_file(settings: Settings) -> Path:
    """The file Airflow reads its users' passwords from; written beforehand, so that they are known and stay."""
    path = settings.secrets_dir / "airflow_passwords.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _write_once(path, json.dumps({user: secrets.token_urlsafe(12) for user in AIRFLOW_USERS}))
    return path


def airflow_password(settings: Settings, user: str = "admin") -> str:
    """The password of one of `AIRFLOW_USERS`."""
    return str(json.loads(airflow_passwords_file(settings).read_text())[user])
