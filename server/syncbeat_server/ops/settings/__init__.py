"""Settings: read once, validated, frozen. Only `cli` and `app` read them."""
