"""`smpirun --profile`: where a job's time, messages and dollars went, by line of the program.

`recorder.py` runs in each rank and adds up; `analysis.py` merges what the ranks left; `text.py` and
`page.py` present it.
"""
