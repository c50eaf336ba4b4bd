"""Measures peers beside ours on one machine: Centrifugo for publishes and streams, firebase-admin of Node for pushes.

They are fetched when they are first asked for (`make bench ONLY=peers`), into `.venv/bench-peers`. One that cannot be
had is told as a line of JSON with its reason, and the others go on.
"""
