from . import contestants as contestants
from . import frontier as frontier
from . import intervals as intervals
from . import scorecard as scorecard
from . import statistics as statistics
from . import verdicts as verdicts
