"""The composition root: opens the stores, wires the features, serves until told to stop, drains, closes."""

from syncbeat_server.app.checks import faults
from syncbeat_server.app.issuers import key_rows
from syncbeat_server.app.process import Stores
from syncbeat_server.app.restoring import restoring
from syncbeat_server.app.serving import serve

__all__ = ["Stores", "faults", "key_rows", "restoring", "serve"]
