"""`smpi compare`: one program under a real MPI, on every channel here, and as forecast for Lambda.

`measure.py` runs it, `rank.py` times it inside each rank, `report.py` and `page.py` present it.
"""
