"""The lean client of the data path: signed requests over kept connections, no boto3.  control.py alone uses boto3."""
