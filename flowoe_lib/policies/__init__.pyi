from . import almgren_chriss as almgren_chriss
from . import dynamic_programming as dynamic_programming
from . import ensemble as ensemble
from . import flow as flow
from . import oracle as oracle
from . import replanning as replanning
from . import rl as rl
from . import schedules as schedules
