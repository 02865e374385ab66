"""Room of the desk: market estimates, plans and reports for a user's own order."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
