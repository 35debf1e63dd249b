"""A deployed stack as `launch` and `deploy` both know it; it imports neither.

Names and sizes are in `layout`, the facts of a stack in `stack`, its queues and their leases in
`pool`, the bucket's keys in `bucket`, measured figures in `stored_figures`, the bill of a job in
`bill`, directory buckets in `express`.
"""
