"""Losses and matching of the systems; weights and draws come from the caller, nothing here knows a model."""
