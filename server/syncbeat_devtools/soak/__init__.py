"""The command `soak`: a planned load on a deployment for hours, a verdict, and a report."""
