"""The version of the package, read from its installed metadata."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("sparsitywatch")
