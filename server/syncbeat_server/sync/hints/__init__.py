"""Makes the hints of devices that ask."""
