"""MusicGen's language model: token ids and condition tensors in, logits out."""
