"""Status: what do the processes of this deployment do right now?"""
