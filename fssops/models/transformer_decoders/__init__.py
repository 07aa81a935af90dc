"""Transformer decoders: queries in, class logits and mask embeddings of every prediction head out."""
