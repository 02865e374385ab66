"""Room of the market: what a market and an order are, what trading costs, and simulated days."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
