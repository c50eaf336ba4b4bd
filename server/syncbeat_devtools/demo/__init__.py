"""The whole story over real processes, each claim checked; or the same processes kept running to try things."""
