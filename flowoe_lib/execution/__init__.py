"""Room of execution: what a trader observes, and how one order is worked on given market paths."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
