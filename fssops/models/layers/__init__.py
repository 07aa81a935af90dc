"""Layers that more than one model file uses."""
