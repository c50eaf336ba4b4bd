"""Decides how much each caller may do: tiers, rates and monthly quotas of an app."""
