from . import bars as bars
from . import calibration as calibration
from . import conditions as conditions
from . import estimators as estimators
from . import impact_fit as impact_fit
from . import records as records
from . import sessions as sessions
