"""Commands that call a deployment from outside, with a token, as its clients do."""
