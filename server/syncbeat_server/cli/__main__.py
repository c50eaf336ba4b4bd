"""Runs the command as `python -m syncbeat_server.cli`."""

import sys

from syncbeat_server.cli.main import main

sys.exit(main())
