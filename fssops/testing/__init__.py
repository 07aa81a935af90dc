"""Shared by tests and benchmarks only: cases of the operators, and measuring."""
