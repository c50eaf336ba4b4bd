"""Pools connections: who gets one, what each is set up with, and what a full or silent server means."""
