"""Engines that run a benchmark's jobs in processes of their own; what they share needs the standard library alone."""
