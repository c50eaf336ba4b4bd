"""SQL of tiers and quotas."""
