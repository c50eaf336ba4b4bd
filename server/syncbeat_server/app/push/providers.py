"""Makes the provider of an app, and its fallback, from the app's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncbeat_server.app.app_configuration import CredentialsFile
from syncbeat_server.clock import Clock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.settings.types import check_base_url
from syncbeat_server.push.providers import HttpRule, Provider
from syncbeat_server.push.providers.log import LogProvider
from syncbeat_server.push.providers.outgoing_proxy import NoProxy

if TYPE_CHECKING:
    from syncbeat_server.push.providers.fcm import AccessTokens


def providers(
    app: AppSettings, settings: Settings, clock: Clock, account: bytes | None = None
) -> tuple[Provider, Provider | None, str]:
    """Return an app's provider, its fallback, and the project whose rate it shares, or "".

    `account`: content of the app's FCM credentials; if None, the file is read.

    Raises:
        ConfigurationError: the configuration cannot be used.
    """
    proxy = "" if settings.push_proxy is None else settings.push_proxy.get_secret_value()
    try:
        return _providers(app, settings, clock, account, proxy)
    except NoProxy as error:
        raise ConfigurationError(f"HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, or SYNCBEAT_PUSH_PROXY: {error}") from None


def _providers(
    app: AppSettings, settings: Settings, clock: Clock, account: bytes | None, proxy: str
) -> tuple[Provider, Provider | None, str]:
    path = app.fcm_credentials
    if path is not None and account is None:
        account = credentials_content(CredentialsFile.read(path))
    tokens = None if path is None else _access_tokens(account or b"", clock, proxy)
    rule = HttpRule(settings.delivery_in_flight, settings.delivery_timeout_s, proxy)
    webhook = None
    if app.webhook_url:
        from syncbeat_server.push.providers.webhook import RelayAddress, WebhookProvider

        token = "" if app.webhook_token is None else app.webhook_token.get_secret_value()
        webhook = WebhookProvider(RelayAddress(app.webhook_url, token, app.webhook_private), rule, clock)
    if tokens is None:
        return webhook or LogProvider(), None, ""
    from syncbeat_server.push.providers.fcm import FcmProvider

    fcm = FcmProvider(tokens, app.fcm_base_url, rule, clock)
    return fcm, webhook, f"fcm:{tokens.project_id}"


def _access_tokens(account: bytes, clock: Clock, proxy: str) -> AccessTokens:
    # firebase-admin is large: a process that pushes nothing to FCM does without it.
    from syncbeat_server.push.providers.fcm import AccessTokens

    try:
        tokens = AccessTokens(account, clock, proxy=proxy)
    except NoProxy:
        raise
    except Exception:  # noqa: BLE001  # google-auth and cryptography raise many kinds of errors for a malformed key
        raise ConfigurationError("SYNCBEAT_FCM_CREDENTIALS: not the JSON of a service account") from None
    try:
        check_base_url("the token_uri of FCM_CREDENTIALS", tokens.token_uri)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_FCM_CREDENTIALS: {error}") from None
    return tokens


def credentials_content(file: CredentialsFile) -> bytes:
    """Return the content of a credentials file. Raises ConfigurationError if it could not be read."""
    if isinstance(file.held, str):
        raise ConfigurationError(f"SYNCBEAT_FCM_CREDENTIALS: {file.held}")
    return file.held
