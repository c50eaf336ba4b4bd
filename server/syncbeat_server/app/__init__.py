"""The composition root: opens the stores, wires the features, serves until told to stop, drains, closes."""

from syncbeat_server.app.config_check import faults
from syncbeat_server.app.process import Stores
from syncbeat_server.app.restore import restoring
from syncbeat_server.app.serving import serve
from syncbeat_server.app.token_issuers import key_rows

__all__ = ["Stores", "faults", "key_rows", "restoring", "serve"]
