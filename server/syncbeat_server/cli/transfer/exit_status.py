"""Exit status of commands that do a part of their work. 1 and 2 are those of all commands, which did none of it."""

from __future__ import annotations

LEFT_OUT = 3
"""All that could be imported is; something was left out, which the report lists."""
