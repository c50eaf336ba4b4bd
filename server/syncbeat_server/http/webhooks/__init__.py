"""Takes signed webhooks in: verifies the sender, maps the payload to an event with effects, answers by the outcome."""
