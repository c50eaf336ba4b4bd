"""The demo: plays a story over real processes and checks each claim, or keeps the same processes running."""
