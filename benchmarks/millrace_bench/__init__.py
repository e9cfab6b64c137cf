"""Benchmarks of Millrace: the same fixed workloads for every engine that is measured."""
