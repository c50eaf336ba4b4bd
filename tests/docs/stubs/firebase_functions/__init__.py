"""Stands for the package that Cloud Functions for Firebase have, so that functions of the pages can be called."""
