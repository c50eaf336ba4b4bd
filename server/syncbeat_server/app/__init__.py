"""Composition root: opens the stores, wires the features, serves until told to stop, drains, closes."""

from syncbeat_server.app.authentication import method_faults, rpc_names
from syncbeat_server.app.config_check import (
    find_config_faults,
    find_config_notes,
    find_config_warnings,
    find_store_faults,
)
from syncbeat_server.app.operations.audit_log import open_audit_log
from syncbeat_server.app.operations.slo import open_figures
from syncbeat_server.app.process import Stores
from syncbeat_server.app.restore import open_restored
from syncbeat_server.app.serving import serve
from syncbeat_server.app.tenants.removed_apps import AppRows, open_stored_apps
from syncbeat_server.app.token_issuers import key_rows
from syncbeat_server.app.transfer.export import check_writes, open_export, open_transfer
from syncbeat_server.app.transfer.users import is_stored, open_users
from syncbeat_server.app.webhooks.samples import try_payload
from syncbeat_server.storage.app_erasure import MOST_COUNTED

__all__ = [
    "MOST_COUNTED",
    "AppRows",
    "Stores",
    "check_writes",
    "find_config_faults",
    "find_config_notes",
    "find_config_warnings",
    "find_store_faults",
    "is_stored",
    "key_rows",
    "method_faults",
    "open_audit_log",
    "open_export",
    "open_figures",
    "open_restored",
    "open_stored_apps",
    "open_transfer",
    "open_users",
    "rpc_names",
    "serve",
    "try_payload",
]
