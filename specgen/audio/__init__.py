"""Audio files: written whole or not at all, read with care, streamed while they are made."""
