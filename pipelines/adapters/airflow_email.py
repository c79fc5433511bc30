"""Sends e-mail through Airflow's SMTP provider, by the connection `smtp_default` of the installation's Airflow."""

from __future__ import annotations

from html import escape

from pipelines.contracts.errors import TransientError

CONNECTION = "smtp_default"


def send(to: str, subject: str, text: str, *, key: str) -> str:
    """Send one message. One that comes again has the same `Message-ID`, so that mailboxes can drop it.

    Raises TransientError when it has not been taken: no such connection, or a server that is away or refuses.
    """
    import smtplib

    from airflow.providers.smtp.hooks.smtp import SmtpHook
    from airflow.sdk.exceptions import AirflowException

    headers = {"Message-ID": f"<{key.replace(':', '.').replace('/', '.')}@slipway>"}
    try:
        with SmtpHook(CONNECTION) as server:
            server.send_email_smtp(
                to=to, subject=subject, html_content=f"<p>{escape(text)}</p>", custom_headers=headers
            )
    except (AirflowException, smtplib.SMTPException, OSError, RuntimeError) as error:
        raise TransientError(
            f"e-mail to {to}",
            got=f"{type(error).__name__}: {error}",
            expected="to be taken",
            hint=f"Give Airflow the connection {CONNECTION} (AIRFLOW_CONN_SMTP_DEFAULT); the next advance sends it.",
        ) from error
    return f"e-mail to {to}"
