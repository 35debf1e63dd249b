"""The lean client of the data path: signed requests over kept connections, without boto3.

Only `control.py`, which creates and removes resources, uses boto3.
"""
