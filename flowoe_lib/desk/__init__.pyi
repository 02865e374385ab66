from . import explorer as explorer
from . import explorer_page as explorer_page
from . import figures as figures
from . import market_estimates as market_estimates
from . import planner as planner
from . import report as report
from . import ticket as ticket
