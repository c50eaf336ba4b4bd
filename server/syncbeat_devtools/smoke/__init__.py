"""The command `smoke`: one user's way through a deployment, after it was deployed."""
