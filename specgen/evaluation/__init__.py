"""Proof and quality: what two ways of making clips have in common, and what they do not."""
