"""Devices and scope members: what every feature looks up."""
