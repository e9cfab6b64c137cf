"""The systems of `millrace bench queue`, a program each: `python -m millrace_bench.queue_peers.<name>`.

They import nothing of Millrace but `program` (and Millrace's own its client and worker), so that each can be run by the
Python of another environment, in which its system is installed.
"""
