"""Settings of issuer, app, sessions and server: read once, validated, frozen. Only `cli` and `app` read them."""
