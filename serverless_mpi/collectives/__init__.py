"""Collective algorithms as generators: no clock, thread, socket or randomness here."""
