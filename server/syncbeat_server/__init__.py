"""The Syncbeat service."""

__version__ = "0.1.0"
"""The version of the distribution, the image and the release, which all read it here."""
