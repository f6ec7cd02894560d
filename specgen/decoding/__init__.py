"""Exact speculative decoding over token grids: it knows ids and logits, never text or audio."""
