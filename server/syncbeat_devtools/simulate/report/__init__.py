"""Results as rows, text and plots."""
