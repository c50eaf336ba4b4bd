"""Maps paths of the Realtime Database to scopes, keys, members, devices and preferences, and back. Pure."""
