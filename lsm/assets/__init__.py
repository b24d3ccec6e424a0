"""Models and corpora by name: `resolve(name)` gives the files, from wherever they are."""

from lsm.assets.cache import Asset, home, local_path, offline, resolve

__all__ = ["Asset", "home", "local_path", "offline", "resolve"]
