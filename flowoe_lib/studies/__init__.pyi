from . import ablations as ablations
from . import calibration_figures as calibration_figures
from . import claims as claims
from . import comparison as comparison
from . import policy_figures as policy_figures
from . import replay as replay
from . import rl_experts as rl_experts
from . import worlds as worlds
