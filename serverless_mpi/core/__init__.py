"""The sans-IO heart: envelopes, matching, wire format, delivery.

Nothing in this folder has a clock, a socket, a thread or randomness; time is an argument.
"""
