"""audiocraft's classes around specgen's weights; they have moved into the package."""

from specgen.benchmarking.audiocraft_peer import *  # noqa: F403
