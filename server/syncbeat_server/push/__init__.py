"""Wakes and notifies devices that are not connected."""
