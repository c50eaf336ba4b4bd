"""The Python client of Syncbeat."""
