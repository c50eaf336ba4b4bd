"""Keeps devices, registration tokens, preferences and scope members, which every feature looks up."""
