"""Mutated inputs for every parser of bytes that come from elsewhere: python -m tests.fuzz."""
