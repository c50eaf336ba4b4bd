"""Pushes news to the devices and services that are connected."""
