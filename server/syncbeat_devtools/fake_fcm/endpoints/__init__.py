"""The two endpoints of Google that the fake answers: sends and OAuth tokens."""
