"""Image encoders that more than one system uses."""
