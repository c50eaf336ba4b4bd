"""Code that exists for speed alone.

Each module names the bench figure that pays for it and the plain version it stands for;
`tests/rpc/test_fastpath.py` holds it against that version (`received_metadata`: a test of its name).
"""
