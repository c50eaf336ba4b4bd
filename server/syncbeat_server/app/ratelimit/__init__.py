"""Wires the limits of apps, tiers and quotas."""
