"""Train, fine-tune, evaluate and deploy HVT, CvT, HRFormer and PiT with PaddlePaddle."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from paddlevit.runtime import settings

if TYPE_CHECKING:
    from paddlevit.classifier import Classifier
    from paddlevit.commands.train import train
    from paddlevit.models import build_model, list_models

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__", "build_model", "list_models", "train"]

settings.set_environment()

# Where the names are that need Paddle, which takes a second to import: they wait until they are asked for.
_ROOMS = {
    "Classifier": "classifier",
    "build_model": "models",
    "list_models": "models",
    "train": "commands.train",
}


def __getattr__(name: str) -> Any:
    module = f"{__name__}.{_ROOMS.get(name, name)}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No ccache found")  # only matters to who compiles extensions
            found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == "paddle":
            raise ImportError(settings.NO_PADDLE) from None
        if error.name != module:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(found, name) if name in _ROOMS else found


def __dir__() -> list[str]:
    return __all__
