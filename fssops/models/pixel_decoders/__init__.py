"""Pixel decoders: from a backbone's four feature maps to mask features and the memory of a transformer decoder."""
