from . import batching as batching
from . import first_trade as first_trade
from . import impact as impact
from . import model as model
from . import pre_trade as pre_trade
from . import ranges as ranges
from . import signal as signal
from . import simulator as simulator
