"""Evaluation protocols and what they produce: scores, tables, JSON and pictures."""
