"""Code that exists for speed alone; each file names the bench figure that pays for it."""
