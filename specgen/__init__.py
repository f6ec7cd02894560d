"""specgen: music from text with MusicGen-family models, faster and unchanged.

`specgen.load(preset)` gives an `Engine` whose `generate(requests)` yields clips. Importing the
package loads no torch; using it does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specgen.engine import Clip, Engine, Request, load
    from specgen.requests import Settings

__version__ = "0.1.0"
__all__ = ["Clip", "Engine", "Request", "Settings", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from specgen import engine
        from specgen import requests as settings

        return settings.Settings if name == "Settings" else getattr(engine, name)
    raise AttributeError(f"module 'specgen' has no attribute {name!r}")
