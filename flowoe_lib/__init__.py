"""FlowOE, replicated: optimal execution of a large order by a refined flow-matching policy.

``import flowoe_lib as fo`` offers the names of ``__init__.pyi``; each is imported on first use. Everything
else is found through its room: ``fo.market``, ``fo.data``, ``fo.execution``, ``fo.policies``,
``fo.training``, ``fo.evaluation``, ``fo.studies`` and ``fo.desk``.
"""

import copyreg
import importlib
import sys

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# lazy-loader may change the type of the package, and functions that use it must reach other processes.
copyreg.pickle(type(sys.modules[__name__]), lambda package: (importlib.import_module, (package.__name__,)))
