"""Euryale: train Medusa heads on your own frozen Llama, and decode with them, losslessly."""

__version__ = "0.1.0"
__all__ = ["Engine", "Generation", "__version__"]


def __getattr__(name: str) -> object:
    """Imports the engine when it is asked for: `import euryale` alone stays free of torch."""
    if name == "Engine":
        from euryale.decoding.engine import Engine

        return Engine
    if name == "Generation":
        from euryale.decoding.request import Generation

        return Generation
    raise AttributeError(f"module 'euryale' has no attribute {name!r}")
