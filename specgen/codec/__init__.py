"""Codecs: tokens to waveform and back."""

from specgen.codec.base import Codec
from specgen.codec.embedded import CodecConfig, EmbeddedCodec, load_codec, save_codec

__all__ = ["Codec", "CodecConfig", "EmbeddedCodec", "load_codec", "save_codec"]
